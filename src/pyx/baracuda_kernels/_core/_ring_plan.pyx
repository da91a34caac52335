# cython: language_level=3
"""Base of all plans over a ring. Arguments are checked once, for any number of runs."""

from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._device cimport enter_device, leave_device
from baracuda_kernels._core._member cimport RingBinding, RingMember, as_member
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._timeline cimport RingTimeline, as_timeline
from baracuda_kernels._core._view cimport integer

from baracuda_kernels._core._errors import InvalidProblemError


cdef class RingArgs:
    """Base of the arguments of ring plans: views of one rank's memory, checked once for each plan
    and communicator."""


cdef class RingPlan(KernelPlan):
    """Base of the plans that run over a ring."""

    def can_implement(self, args, world_size=None, *, comm=None):
        """Raise the error that ``run`` would raise for these arguments; return None if it would
        run.

        Parameters
        ----------
        args : object
            Arguments of the plan's own type.
        world_size : int, optional
            Number of ranks. Without it, all scratch that some world size needs is required.
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol, optional
            The communicator for ``run``, in place of `world_size`. Its device is checked too. With
            ``exchange="peer"`` the receive buffers must be registered.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, BufferTooSmallError, WorkspaceTooSmallError
            As :meth:`run`.
        CommunicatorError
            The communicator failed, or is closed.
        """
        if comm is not None:
            if world_size is not None:
                raise InvalidProblemError("world_size, comm: got both, must be one of them")
            self.bind_anew(as_member(comm, self.device), args)
            return
        self.check(args, 3 if world_size is None else integer("world_size", world_size, 1, 2 ** 31))

    def run(self, stream, comm, args, *, timeline=None):
        """Run this rank's part. Collective: every rank of the ring calls it.

        Parameters
        ----------
        stream : Stream or a source that :class:`Stream` takes
            The caller's stream. Inputs are read and outputs written in its order.
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol
        args : object
            Arguments of the plan's own type.
        timeline : RingTimeline, optional
            Records the times of each step. Refused while ``stream`` is captured.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, BufferTooSmallError, WorkspaceTooSmallError
            An operand is wrong, here or on another rank of an NCCL ring on this machine. This rank
            has launched and sent nothing. On a rank that had begun the call, the ring has failed.
        CommunicatorError
            The communicator is in another run, failed or closed; or another rank has ended the
            ring because a launch of its backward failed.
        KeyboardInterrupt
            Ctrl-C while the host computed or waited for another rank. Outputs and scratch are then
            undefined, and a ring of several ranks is aborted.
        NcclError, NcclTimeoutError, CudaError
            The ring or the GPU failed.
        """
        cdef RingMember member = as_member(comm, self.device)
        cdef Stream one
        cdef RingBinding binding
        cdef RingTimeline recorder
        cdef int32_t status, previous
        try:
            one = as_stream(stream)
            binding = self.bind(one, member, args)
            recorder = as_timeline(timeline)
        except Exception as error:
            member.pass_on(error, False)
            raise
        # Until this rank has the communicator, another run may read what is written below.
        member.enter()
        binding.call.stream = one.handle
        binding.call.marks = NULL
        try:
            previous = enter_device(self.device)
            if recorder is not None:
                try:
                    recorder.prepare(member, one, &binding.call)
                except BaseException:
                    leave_device(previous)
                    raise
        except BaseException as error:
            member.pass_on(error, True)
            member.leave(c_api.BARACUDA_OK)
            raise
        with nogil:
            status = c_api.baracuda_ring_run(&binding.call, 1)
        if recorder is not None:
            recorder.finish(status)
        try:
            leave_device(previous)
        finally:
            member.leave(status)

    cdef RingBinding bind(self, Stream stream, RingMember member, object args):
        cdef RingBinding binding
        self.refuse_stream(stream)
        if isinstance(args, RingArgs):
            binding = (<RingArgs>args).binding
            if binding is not None and binding.plan is self and binding.member is member:
                return binding
        binding = self.bind_anew(member, args)
        (<RingArgs>args).binding = binding
        return binding

    cdef RingBinding bind_anew(self, RingMember member, object args):
        cdef RingBinding binding
        member.refuse_if_unusable()
        self.refuse_member(member)
        binding = self.check(args, member.world_size)
        binding.connect(self, member)
        return binding

    cdef int refuse_member(self, RingMember member) except -1:
        if member.device != self.device:
            raise InvalidProblemError(
                f"comm: got device {member.device}, must be on the plan's device, {self.device}")
        return 0

    cdef dict orders(self, object args):
        return {}

    cdef RingBinding check(self, object args, int64_t world_size):
        raise NotImplementedError
