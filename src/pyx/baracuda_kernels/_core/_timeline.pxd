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
    cdef list sums           # whether each exchange was followed by an addition
    cdef bint settles        # whether the program has work of this rank alone after the last launch
    cdef bint recorded
    cdef bint in_run         # a run records into this timeline
    cdef int readers         # number of calls that wait for the events
    cdef list measured       # the steps, after they have been read

    # Takes the timeline for one run of member on stream, and puts its events into call. Refuses a
    # stream in capture, and a timeline that another run or a reader uses.
    cdef int prepare(self, RingMember member, Stream stream, baracuda_ring_call* call) except -1
    # Gives the timeline back after the run, with the run's status.
    cdef int finish(self, int32_t status) noexcept
    cdef list measure(self)
    # The spans, with times after the event start.
    cdef list collect(self, void* start)
    cdef object span(self, int step, str name, void* start, void* begin, void* end)
    cdef void* sum_wait(self, int t) noexcept
    cdef void* last_event(self) noexcept
    cdef int destroy_marks(self) noexcept
    cdef double elapsed(self, void* start, void* stop) except? -1

# The RingTimeline that a caller gave; None stays None.
cdef RingTimeline as_timeline(object timeline)
