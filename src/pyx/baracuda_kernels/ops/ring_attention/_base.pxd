# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core.c_api cimport baracuda_ring_payload
from baracuda_kernels._core._ring_plan cimport RingPlan
from baracuda_kernels._core._tensor cimport TensorRef
from baracuda_kernels.ops.attention._kernel cimport AttentionKernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.attention.c_api cimport baracuda_attention_step_params, baracuda_strides
from baracuda_kernels.ops.ring_attention._descriptor cimport RingAttentionDescriptor

# The part that the plans of both directions share: K and V on the ring, and a step's positions.
cdef class RingAttentionBase(RingPlan):
    cdef AttentionKernel kernel

    # Fills in the payload of K and V, which are sent from the caller's memory. Scratch that the
    # world size does not need may be None. own_scratch_b: buffer B is scratch_b; if not, the caller
    # fills it in.
    cdef int bind_chunks(self, AttentionOperands checks, TensorRef k, TensorRef v,
                         TensorRef scratch_a, TensorRef scratch_b, int64_t world_size,
                         bint own_scratch_b, baracuda_attention_step_params* step,
                         baracuda_ring_payload* payload) except -1
    # Fills in the positions of a step of `plan.step`: the rows of `rank` and the keys of `origin`.
    cdef int place(self, object rank, object origin, object world_size,
                   baracuda_attention_step_params* step) except -1

# Elements of a rank's K; its V has as many.
cdef int64_t kv_elements(RingAttentionDescriptor d) noexcept
# Raises unless the elements of an operand fill one range of memory. The operand is of this shape, or
# bytes of such a tensor. why: the end of the message.
cdef int require_dense(str name, TensorRef view, tuple shape, baracuda_strides strides,
                       str why) except -1
