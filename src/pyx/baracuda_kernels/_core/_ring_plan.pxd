# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core._member cimport RingBinding, RingMember
from baracuda_kernels._core._plan cimport KernelPlan
from baracuda_kernels._core._stream cimport Stream

# Base of the arguments of ring plans.
cdef class RingArgs:
    # The last plan and communicator that these arguments were checked for.
    cdef RingBinding binding

cdef class RingPlan(KernelPlan):
    # Checks all operands, and returns a call of the plan's op without a schedule and an endpoint.
    # Raises for arguments of another plan type.
    cdef RingBinding check(self, object args, int64_t world_size)
    # The same, with the schedule and endpoint of a communicator. The arguments keep the result for
    # the next run.
    cdef RingBinding bind(self, Stream stream, RingMember member, object args)
    cdef RingBinding bind_anew(self, RingMember member, object args)
    # How the chunks of these arguments lie in memory, by name. Ranks that differ would misread each
    # other's.
    cdef dict orders(self, object args)
    cdef int refuse_member(self, RingMember member) except -1
