# cython: language_level=3
"""The times at which each step of a run computed, exchanged, and waited for the exchange."""

from typing import NamedTuple

from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._status cimport check
from baracuda_kernels._core._stream cimport Stream

from baracuda_kernels._core._errors import InvalidProblemError


cdef enum:
    _MARKS = 9  # events of baracuda_ring_marks


class RingStepTime(NamedTuple):
    """One step of one rank, in milliseconds.

    Attributes
    ----------
    step : int
    compute : float
        Time of the step's kernels; about 0 if the mask leaves no work. In a backward it includes
        the additions of received sums, and in the last step the writing of dq.
    exchange : float
        Time from when the step's messages could start until they had arrived, with waits for peers.
        0 in the last step of a forward, which has no exchange. In a backward the last exchange
        returns the sums.
    exposed : float
        Time that the caller's stream waited for exchanges after all its earlier work had ended. 0
        in the first step.
    """

    step: int
    compute: float
    exchange: float
    exposed: float


class RingSpan(NamedTuple):
    """One activity of a rank in a run.

    Attributes
    ----------
    step : int
    name : str
        ``"compute"``, ``"exchange"`` or ``"exposed"``, as the fields of :class:`RingStepTime`.
    begin, end : float
        Milliseconds after the start of the first step, of this rank or of ``since``; negative if
        earlier.
    """

    step: int
    name: str
    begin: float
    end: float


cdef class RingTimeline:
    """Records the times of a run's steps. Pass it as ``plan.run(..., timeline=...)``.

    Its events are made in the first run, and again if the world size or the device changes, so such
    a run allocates. A run without a timeline records nothing and costs nothing. Reading a result
    waits for the run. One object is for one rank, and keeps its last run.

    Attributes
    ----------
    rank, world_size : int
        Those of the last run; -1 and 0 before the first.
    hops : tuple of HopExchange
        The exchange of each hop in the last run, with the reason if it is not peer. Empty before
        the first run, and for communicators with only one exchange.
    """

    def __cinit__(self):
        self.rank = -1
        self.hops = ()

    @property
    def steps(self):
        """List of :class:`RingStepTime`, one for each step. Waits for the run.

        Raises
        ------
        InvalidProblemError
            No run was recorded yet.
        CudaError
            The run failed on the GPU.
        """
        if not self.recorded:
            raise InvalidProblemError(
                "timeline: got one in which nothing was recorded, must have been passed to a run")
        if self.measured is None:
            self.readers += 1
            try:
                self.measured = self.measure()
            finally:
                self.readers -= 1
        return list(self.measured)

    @property
    def compute(self):
        """Milliseconds of all kernels."""
        return sum(step.compute for step in self.steps)

    @property
    def exchange(self):
        """Milliseconds of all exchanges, concurrent with kernels or not."""
        return sum(step.exchange for step in self.steps)

    @property
    def exposed(self):
        """Milliseconds that the kernels waited for exchanges."""
        return sum(step.exposed for step in self.steps)

    @property
    def total(self):
        """Milliseconds from the start of the first kernel to the end of the last one.

        In a backward the additions of received sums are kernels too. If several ranks share a
        stream, the work of the others is included.
        """
        if not self.recorded:
            raise InvalidProblemError(
                "timeline: got one in which nothing was recorded, must have been passed to a run")
        self.readers += 1
        try:
            return self.elapsed(self.marks[0].compute_begin, self.last_event())
        finally:
            self.readers -= 1

    def spans(self, since=None):
        """The spans of a run, as the lanes of a profiler. Waits for the run.

        Parameters
        ----------
        since : RingTimeline, optional
            The timeline of the rank whose first step is time 0, of the same run and device; by
            default this one. To compare several ranks, use one for all.

        Returns
        -------
        list of RingSpan
            In order of steps.

        Raises
        ------
        InvalidProblemError
            No run was recorded yet, here or in ``since``, or ``since`` is of another device.
        CudaError
            The run failed on the GPU.
        """
        cdef RingTimeline other = self if since is None else as_timeline(since)
        if not self.recorded or not other.recorded:
            raise InvalidProblemError(
                "timeline: got one in which nothing was recorded, must have been passed to a run")
        if other.device != self.device or other.ops != self.ops:
            raise InvalidProblemError(
                f"since: got a timeline of device {other.device}, must be of device {self.device}")
        self.readers += 1
        other.readers += 1
        try:
            return self.collect(other.marks[0].wait_begin)
        finally:
            self.readers -= 1
            other.readers -= 1

    cdef list collect(self, void* start):
        cdef c_api.baracuda_ring_marks* mark
        cdef int t, step, launches = self.world_size * self.parts
        cdef list spans = []
        self.elapsed(start, start)  # waits for `start`, so that events before it can be read too
        for t in range(launches + 1):
            mark = &self.marks[t]
            # The exchange after the last launch returns the sums. `measure` counts it to the last
            # step.
            step = min(t // self.parts, self.world_size - 1)
            if t < launches:
                spans.append(self.span(step, "compute", start, mark.compute_begin,
                                       mark.compute_end))
            if self.exchanges[t]:
                spans.append(self.span(step, "exchange", start, mark.exchange_begin,
                                       mark.exchange_end))
            if 0 < t < launches:
                spans.append(self.span(step, "exposed", start, mark.wait_begin,
                                       mark.compute_begin))
            if t == launches and self.exchanges[t] and self.settles:
                spans.append(self.span(step, "compute", start, mark.settle_begin,
                                       mark.settle_end))
            if self.sums[t]:
                spans.append(self.span(step, "exposed", start, self.sum_wait(t), mark.add_begin))
                spans.append(self.span(step, "compute", start, mark.add_begin, mark.add_end))
        return spans

    cdef void* sum_wait(self, int t) noexcept:
        """The event at which the wait for the received sums of launch t begins."""
        if t < self.world_size * self.parts:
            return self.marks[t].compute_end
        return self.marks[t].wait_begin

    cdef void* last_event(self) noexcept:
        cdef int launches = self.world_size * self.parts
        if self.sums[launches]:
            return self.marks[launches].add_end
        if self.sums[launches - 1]:
            return self.marks[launches - 1].add_end
        return self.marks[launches - 1].compute_end

    cdef object span(self, int step, str name, void* start, void* begin, void* end):
        return RingSpan(step, name, self.elapsed(start, begin), self.elapsed(start, end))

    cdef list measure(self):
        cdef c_api.baracuda_ring_marks* mark
        cdef int s, t
        cdef double compute, exchange, exposed
        cdef list measured = []
        for s in range(self.world_size):
            compute = exchange = exposed = 0.0
            for t in range(s * self.parts, (s + 1) * self.parts):
                mark = &self.marks[t]
                compute += self.elapsed(mark.compute_begin, mark.compute_end)
                if self.exchanges[t]:
                    exchange += self.elapsed(mark.exchange_begin, mark.exchange_end)
                if t > 0:
                    exposed += self.elapsed(mark.wait_begin, mark.compute_begin)
                if self.sums[t]:
                    exposed += self.elapsed(self.sum_wait(t), mark.add_begin)
                    compute += self.elapsed(mark.add_begin, mark.add_end)
            if s + 1 == self.world_size and self.exchanges[t + 1]:  # this exchange returns the sums
                mark = &self.marks[t + 1]
                if self.settles:
                    compute += self.elapsed(mark.settle_begin, mark.settle_end)
                exchange += self.elapsed(mark.exchange_begin, mark.exchange_end)
                exposed += self.elapsed(mark.wait_begin, mark.add_begin)
                compute += self.elapsed(mark.add_begin, mark.add_end)
            measured.append(RingStepTime(s, compute, exchange, exposed))
        return measured

    cdef double elapsed(self, void* start, void* stop) except? -1:
        cdef float milliseconds = 0
        cdef int32_t status
        with nogil:
            status = self.ops.elapsed(start, stop, &milliseconds)
        check(status)
        return milliseconds

    cdef int prepare(self, RingMember member, Stream stream,
                     c_api.baracuda_ring_call* call) except -1:
        cdef int32_t capturing = 0, previous = -1, status = c_api.BARACUDA_OK
        if self.in_run or self.readers:
            raise InvalidProblemError(
                "timeline: got one in use by another run or reader, must be one per rank and run")
        cdef int i, count = member.world_size * call.program.parts + 1
        cdef void** events
        if stream.device >= 0:
            check(c_api.baracuda_cuda_stream_is_capturing(stream.handle, &capturing))
        if capturing:
            raise InvalidProblemError(
                "timeline: got one for a captured stream, must be None: a graph's events tell no "
                "time")
        self.recorded = False
        self.measured = None
        if self.world_size != member.world_size or self.device != member.device \
                or self.parts != call.program.parts or self.ops != member.endpoint.ops \
                or self.marks == NULL:
            self.destroy_marks()
            self.marks = <c_api.baracuda_ring_marks*>calloc(count, sizeof(self.marks[0]))
            if self.marks == NULL:
                raise MemoryError("timeline")
            self.ops = member.endpoint.ops
            self.world_size = member.world_size
            self.parts = call.program.parts
            self.device = member.device
            if self.device >= 0:  # events belong to the current device
                check(self.ops.get_device(&previous))
                check(self.ops.set_device(self.device))
            events = <void**>self.marks
            for i in range(_MARKS * count):
                if status == c_api.BARACUDA_OK:
                    status = self.ops.timed_event_create(&events[i])
            if self.device >= 0:
                self.ops.set_device(previous)
            if status != c_api.BARACUDA_OK:
                self.destroy_marks()
            check(status)
        self.rank = member.rank
        self.hops = member.hops_of(call)
        self.exchanges = [bool(c_api.baracuda_ring_has_exchange(call, i)) for i in range(count)]
        self.settles = call.program.settle != NULL
        self.sums = [bool(c_api.baracuda_ring_has_sum(call, i)) for i in range(count)]
        call.marks = self.marks
        self.in_run = True
        return 0

    cdef int finish(self, int32_t status) noexcept:
        self.in_run = False
        self.recorded = status == c_api.BARACUDA_OK
        return 0

    cdef int destroy_marks(self) noexcept:
        cdef int i
        cdef void** events = <void**>self.marks
        if self.marks != NULL:
            for i in range(_MARKS * (self.world_size * self.parts + 1)):
                if events[i] != NULL:
                    self.ops.event_destroy(events[i])
        free(self.marks)
        self.marks = NULL
        self.world_size = 0
        return 0

    def __repr__(self):
        if not self.recorded:
            return "RingTimeline()"
        return f"RingTimeline(rank={self.rank}, world_size={self.world_size})"

    def __dealloc__(self):
        self.destroy_marks()


cdef RingTimeline as_timeline(object timeline):
    if timeline is None or isinstance(timeline, RingTimeline):
        return timeline
    raise InvalidProblemError(
        f"timeline: got {type(timeline).__name__}, must be a RingTimeline")
