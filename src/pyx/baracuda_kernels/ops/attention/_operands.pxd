# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels.ops.attention.c_api cimport baracuda_attention_step_params, baracuda_strides
from baracuda_kernels._core._operands cimport OperandChecks
from baracuda_kernels._core._tensor cimport TensorRef
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

# Checks of one attention call's operands, which also fill the step's params.
cdef class AttentionOperands(OperandChecks):
    cdef int64_t stride_multiple  # elements, of strides
    cdef bint forward_strides     # inputs must not run backwards

    # A [b, h, s, d] operand (a byte buffer that is large enough counts as dense); fills strides.
    cdef TensorRef tensor(self, str name, TensorRef view, int64_t b, int64_t h, int64_t s,
                          int64_t d, bint output, baracuda_strides* strides)
    # The operands of a problem, into a step: pointers, strides, and the type of lse.
    cdef int bind_query(self, AttentionDescriptor d, TensorRef q,
                        baracuda_attention_step_params* step) except -1
    cdef int bind_keys(self, AttentionDescriptor d, TensorRef k, TensorRef v,
                       baracuda_attention_step_params* step) except -1
    cdef int bind_outputs(self, AttentionDescriptor d, TensorRef y, TensorRef lse,
                          baracuda_attention_step_params* step) except -1
    # Row log-sum-exps [b, h, s], contiguous, float32 or the operands' element.
    cdef TensorRef lse(self, TensorRef view, int64_t b, int64_t h, int64_t s)
