# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core.c_api cimport baracuda_attention_step_params, baracuda_strides
from baracuda_kernels._core._tensor cimport TensorRef
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

# Checks of one call's operands. Collects them as it goes, for the overlap check at the end.
cdef class OperandChecks:
    cdef object element
    cdef int itemsize
    cdef int device
    cdef int alignment            # bytes, of pointers
    cdef int64_t stride_multiple  # elements, of strides
    cdef bint forward_strides     # inputs must not run backwards
    cdef list inputs
    cdef list outputs

    cdef int common(self, str name, TensorRef view, bint output) except -1
    cdef int aligned(self, str name, TensorRef view, int alignment) except -1
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
    # Contiguous scratch of at least so many elements of the operands' type.
    cdef TensorRef scratch(self, str name, TensorRef view, int64_t elements)
    # Contiguous scratch of at least so many bytes, of any type.
    cdef TensorRef workspace(self, str name, TensorRef view, int64_t nbytes)
    # Outputs may overlap nothing.
    cdef int no_overlaps(self) except -1
