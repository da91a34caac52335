# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels._core.c_api cimport baracuda_ring_call, baracuda_ring_marks, \
    baracuda_stream_ops
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._stream cimport Stream

cdef class RingTimeline:
    cdef baracuda_ring_marks* marks
    cdef const baracuda_stream_ops* ops
    cdef int device
    cdef readonly int rank
    cdef readonly int world_size
    cdef readonly tuple hops
    cdef int parts           # launches of a step
    cdef list exchanges      # whether each exchange of the recorded run had messages
    cdef list sums           # and whether something was added
    cdef bint settles        # whether the last launch may leave something for its own rank
    cdef bint recorded
    cdef bint in_run         # a run records into it
    cdef int readers         # calls that wait for its events
    cdef list measured       # the steps, once they were read

    # Takes the timeline for one run of member on stream: its events, put into call. Refuses a stream
    # that is being captured, and a timeline that another run records into or that is being read.
    cdef int prepare(self, RingMember member, Stream stream, baracuda_ring_call* call) except -1
    # Gives it back after the run, with the run's status.
    cdef int finish(self, int32_t status) noexcept
    cdef list measure(self)
    # The spans, from the event start on.
    cdef list collect(self, void* start)
    cdef object span(self, int step, str name, void* start, void* begin, void* end)
    cdef void* sum_wait(self, int t) noexcept
    cdef void* last_event(self) noexcept
    cdef int destroy_marks(self) noexcept
    cdef double elapsed(self, void* start, void* stop) except? -1

# What was given as a timeline; None stays None.
cdef RingTimeline as_timeline(object timeline)
