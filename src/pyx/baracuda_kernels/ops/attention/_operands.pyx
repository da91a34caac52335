# cython: language_level=3, cdivision=True
"""The checks of an attention call's operands, in addition to those of every op."""

from libc.stdint cimport int64_t

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._operands cimport is_bytes, no_self_overlap, same_element
from baracuda_kernels._core._tensor cimport TensorRef

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._errors import (
    BufferTooSmallError,
    InvalidProblemError,
    MisalignedOperandError,
)
from baracuda_kernels.ops.attention._descriptor import accumulator_of


cdef object _gradient_element(TensorRef dk, TensorRef dv, object element):
    """The common element of dk and dv: that of the operands or of the accumulator."""
    accumulator = accumulator_of(element)
    if same_element(dk.element, element) and same_element(dv.element, element):
        return element
    if same_element(dk.element, accumulator) and same_element(dv.element, accumulator):
        return accumulator
    raise InvalidProblemError(
        f"dk, dv: got {dk.element} and {dv.element}, must both be {element} as in the descriptor, "
        f"or both {accumulator}, the accumulator's type")


cdef class AttentionOperands(OperandChecks):
    def __cinit__(self, element, int device, int alignment, int64_t stride_multiple,
                  int64_t stride_limit):
        self.stride_multiple = stride_multiple
        self.stride_limit = stride_limit

    cdef TensorRef tensor(self, str name, TensorRef view, int64_t b, int64_t h, int64_t s,
                          int64_t d, bint output, baracuda_strides* strides):
        return self.tensor_of(self.element, name, view, b, h, s, d, output, strides)

    cdef TensorRef tensor_of(self, object element, str name, TensorRef view, int64_t b, int64_t h,
                             int64_t s, int64_t d, bint output, baracuda_strides* strides):
        cdef int i, itemsize
        self.common(name, view, output)
        shape = (b, h, s, d)
        if is_bytes(view):
            itemsize = element.itemsize
            if view.numel() < b * h * s * d * itemsize:
                raise BufferTooSmallError(b * h * s * d, view.numel() // itemsize, name)
            view = TensorRef(view, shape, None, element)
        if view.ndim != 4 or view.shape != shape:
            raise InvalidProblemError(f"{name}: got shape {view.shape}, must be {shape}")
        if not same_element(view.element, element):
            raise InvalidProblemError(
                f"{name}: got {view.element}, must be {element} as in the descriptor")
        if view.numel() > 0:
            if d > 1 and view.element_strides[3] != 1:
                raise InvalidProblemError(
                    f"{name}: got stride {view.element_strides[3]} in the last dimension, must be "
                    "1 (contiguous)")
            self.aligned(name, view, max(self.alignment, view.itemsize))
            for i in range(3):
                if view.dims[i] > 1 and view.element_strides[i] % self.stride_multiple:
                    raise MisalignedOperandError(
                        f"{name}: got stride {view.element_strides[i]} in dimension {i}, must for "
                        f"this kernel be a multiple of {self.stride_multiple} elements")
                if (self.stride_limit and not output and view.dims[i] > 1
                        and not 0 <= view.element_strides[i] < self.stride_limit):
                    raise InvalidProblemError(
                        f"{name}: got stride {view.element_strides[i]} in dimension {i}, must for "
                        f"this kernel be from 0 to {self.stride_limit - 1}; allow_sm90a=False "
                        "selects one that takes any stride")
            if output:
                no_self_overlap(name, view)
        # The stride of a dimension of extent 1 is never used.
        strides.batch = view.element_strides[0] if b > 1 else 0
        strides.head = view.element_strides[1] if h > 1 else 0
        strides.seq = view.element_strides[2] if s > 1 else 0
        (self.outputs if output else self.inputs).append((name, view))
        return view

    cdef int bind_query(self, AttentionDescriptor d, TensorRef q,
                        baracuda_attention_step_params* step) except -1:
        cdef TensorRef view = self.tensor("q", q, d.batch_size, d.num_heads, d.query_len,
                                          d.head_dim, False, &step.q_strides)
        step.q = view.data
        return 0

    cdef int bind_keys(self, AttentionDescriptor d, TensorRef k, TensorRef v,
                       baracuda_attention_step_params* step) except -1:
        cdef TensorRef view = self.tensor("k", k, d.batch_size, d.num_kv_heads, d.key_len,
                                          d.head_dim, False, &step.k_strides)
        step.k = view.data
        view = self.tensor("v", v, d.batch_size, d.num_kv_heads, d.key_len, d.head_dim, False,
                           &step.v_strides)
        step.v = view.data
        return 0

    cdef int bind_outputs(self, AttentionDescriptor d, TensorRef y, TensorRef lse,
                          baracuda_attention_step_params* step) except -1:
        cdef TensorRef view = self.tensor("y", y, d.batch_size, d.num_heads, d.query_len,
                                          d.head_dim, True, &step.y_strides)
        step.y = view.data
        if lse is not None:
            view = self.lse(lse, d.batch_size, d.num_heads, d.query_len)
            step.lse = view.data
            if view.itemsize != 4:
                step.lse_element = d.c_element
        return 0

    cdef int bind_results(self, AttentionDescriptor d, TensorRef y, TensorRef lse,
                          baracuda_attention_backward_params* params) except -1:
        cdef TensorRef view = self.tensor("y", y, d.batch_size, d.num_heads, d.query_len,
                                          d.head_dim, False, &params.step.y_strides)
        params.step.y = view.data
        view = self.rows("lse", lse, d, &params.lse_strides)
        params.step.lse = view.data
        params.step.lse_element = attention_api.BARACUDA_F64 if view.itemsize == 8 \
            else attention_api.BARACUDA_F32
        return 0

    cdef int bind_gradients(self, AttentionDescriptor d, TensorRef dy, TensorRef dlse,
                            TensorRef dq, TensorRef dk, TensorRef dv,
                            baracuda_attention_backward_params* params) except -1:
        self.bind_row_gradients(d, dy, dlse, params)
        self.bind_dq(d, dq, params)
        self.bind_key_gradients(d, dk, dv, params)
        return 0

    cdef int bind_row_gradients(self, AttentionDescriptor d, TensorRef dy, TensorRef dlse,
                                baracuda_attention_backward_params* params) except -1:
        cdef TensorRef view = self.tensor("dy", dy, d.batch_size, d.num_heads, d.query_len,
                                          d.head_dim, False, &params.dy_strides)
        params.dy = view.data
        if dlse is not None:
            view = self.rows("dlse", dlse, d, &params.dlse_strides)
            params.dlse = view.data
        return 0

    cdef int bind_dq(self, AttentionDescriptor d, TensorRef dq,
                     baracuda_attention_backward_params* params) except -1:
        cdef TensorRef view = self.tensor("dq", dq, d.batch_size, d.num_heads, d.query_len,
                                          d.head_dim, True, &params.dq_strides)
        params.dq = view.data
        return 0

    cdef int bind_key_gradients(self, AttentionDescriptor d, TensorRef dk, TensorRef dv,
                                baracuda_attention_backward_params* params) except -1:
        cdef TensorRef view
        params.kv_gradient_element = d.c_element
        element = self.element
        if dk is not None and not is_bytes(dk) and dv is not None and not is_bytes(dv):
            element = _gradient_element(dk, dv, element)
            if element is not self.element:
                params.kv_gradient_element = attention_api.BARACUDA_F32
        view = self.tensor_of(element, "dk", dk, d.batch_size, d.num_kv_heads, d.key_len,
                              d.head_dim, True, &params.dk_strides)
        params.dk = view.data
        view = self.tensor_of(element, "dv", dv, d.batch_size, d.num_kv_heads, d.key_len,
                              d.head_dim, True, &params.dv_strides)
        params.dv = view.data
        return 0

    cdef TensorRef rows(self, str name, TensorRef view, AttentionDescriptor d,
                        baracuda_strides* strides):
        self.common(name, view, False)
        shape = (d.batch_size, d.num_heads, d.query_len)
        if view.ndim != 3 or view.shape != shape:
            raise InvalidProblemError(f"{name}: got shape {view.shape}, must be {shape}")
        accumulator = accumulator_of(self.element)
        if not same_element(view.element, accumulator):
            raise InvalidProblemError(
                f"{name}: got {view.element}, must be {accumulator}, the accumulator's type")
        self.aligned(name, view, view.itemsize)
        strides.batch = view.element_strides[0] if view.dims[0] > 1 else 0
        strides.head = view.element_strides[1] if view.dims[1] > 1 else 0
        strides.seq = view.element_strides[2] if view.dims[2] > 1 else 0
        self.inputs.append((name, view))
        return view

    cdef TensorRef lse(self, TensorRef view, int64_t b, int64_t h, int64_t s):
        self.common("lse", view, True)
        if view.ndim != 3 or view.shape != (b, h, s):
            raise InvalidProblemError(f"lse: got shape {view.shape}, must be {(b, h, s)}")
        if not same_element(view.element, ElementKind.F32) \
                and not same_element(view.element, self.element):
            raise InvalidProblemError(
                f"lse: got {view.element}, must be F32 or the operands' {self.element}")
        if not view.is_dense_bytes():
            raise InvalidProblemError(
                f"lse: got strides {view.strides}, must be contiguous [B, H, Q]")
        self.aligned("lse", view, view.itemsize)
        self.outputs.append(("lse", view))
        return view
