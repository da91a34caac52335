# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels.ops.attention.c_api cimport (
    baracuda_attention_backward_params,
    baracuda_attention_step_params,
    baracuda_strides,
)
from baracuda_kernels._core._operands cimport OperandChecks
from baracuda_kernels._core._tensor cimport TensorRef
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

# Checks the operands of one attention call, and fills the step's params.
cdef class AttentionOperands(OperandChecks):
    cdef int64_t stride_multiple  # elements, of strides
    cdef int64_t stride_limit     # elements: strides of inputs are in [0, limit); 0: any

    # Checks a [b, h, s, d] operand and fills strides. A large enough byte buffer is taken for a
    # dense operand.
    cdef TensorRef tensor(self, str name, TensorRef view, int64_t b, int64_t h, int64_t s,
                          int64_t d, bint output, baracuda_strides* strides)
    # The same for an operand of the given element, which may differ from the problem's.
    cdef TensorRef tensor_of(self, object element, str name, TensorRef view, int64_t b, int64_t h,
                             int64_t s, int64_t d, bint output, baracuda_strides* strides)
    # Binds the operands of a problem to a step: pointers, strides, and the type of lse.
    cdef int bind_query(self, AttentionDescriptor d, TensorRef q,
                        baracuda_attention_step_params* step) except -1
    cdef int bind_keys(self, AttentionDescriptor d, TensorRef k, TensorRef v,
                       baracuda_attention_step_params* step) except -1
    cdef int bind_outputs(self, AttentionDescriptor d, TensorRef y, TensorRef lse,
                          baracuda_attention_step_params* step) except -1
    # Binds the other operands of the backward: results of the forward, and gradients. dk and dv
    # both have the problem's element, or both the accumulator's.
    cdef int bind_results(self, AttentionDescriptor d, TensorRef y, TensorRef lse,
                          baracuda_attention_backward_params* params) except -1
    cdef int bind_gradients(self, AttentionDescriptor d, TensorRef dy, TensorRef dlse,
                            TensorRef dq, TensorRef dk, TensorRef dv,
                            baracuda_attention_backward_params* params) except -1
    cdef int bind_row_gradients(self, AttentionDescriptor d, TensorRef dy, TensorRef dlse,
                                baracuda_attention_backward_params* params) except -1
    cdef int bind_dq(self, AttentionDescriptor d, TensorRef dq,
                     baracuda_attention_backward_params* params) except -1
    cdef int bind_key_gradients(self, AttentionDescriptor d, TensorRef dk, TensorRef dv,
                                baracuda_attention_backward_params* params) except -1
    # Checks an input [b, h, s] in the accumulator's type, with any strides.
    cdef TensorRef rows(self, str name, TensorRef view, AttentionDescriptor d,
                        baracuda_strides* strides)
    # Checks lse [b, h, s], contiguous, float32 or the operands' element.
    cdef TensorRef lse(self, TensorRef view, int64_t b, int64_t h, int64_t s)
