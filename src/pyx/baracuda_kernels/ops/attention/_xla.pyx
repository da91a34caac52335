# cython: language_level=3
"""The XLA handlers of the attention steps, forward and backward, and the sizes of their buffers."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import UnsupportedError
from baracuda_kernels.ops.attention import _families


def handlers():
    """Direction -> XLA platform -> stage -> capsule of the handler, for ``register_ffi_target``.

    ``include/baracuda/xla_ffi.h`` documents the operands and attributes.
    """
    return {
        Direction.FORWARD: {
            "cpu": {"execute": _capsule(<void*>attention_api.baracuda_xla_attention_host)},
            "CUDA": {"execute": _capsule(<void*>attention_api.baracuda_xla_attention_cuda),
                     "initialize": _capsule(
                         <void*>attention_api.baracuda_xla_attention_cuda_load)},
        },
        Direction.BACKWARD: {
            "cpu": {"execute": _capsule(
                <void*>attention_api.baracuda_xla_attention_backward_host)},
            "CUDA": {"execute": _capsule(
                         <void*>attention_api.baracuda_xla_attention_backward_cuda),
                     "initialize": _capsule(
                         <void*>attention_api.baracuda_xla_attention_backward_cuda_load)},
        },
    }


def state_bytes(AttentionDescriptor descriptor not None):
    """Bytes of a step's state, enough for any family that may serve the problem.

    Raises
    ------
    InvalidProblemError
        The descriptor is invalid.
    UnsupportedError
        No family takes its element and head_dim.
    """
    cdef attention_api.baracuda_attention_step_params step
    cdef int64_t most = -1
    descriptor.validate()
    descriptor.fill(&step)
    for family in _families.FAMILIES:
        if attention_api.baracuda_attention_available(family.kernel):
            most = max(most, attention_api.baracuda_attention_state_bytes(family.kernel, &step))
    if most < 0:
        raise UnsupportedError(
            f"descriptor: got {descriptor!r}, must be one that some kernel of this build serves")
    return most


def backward_scratch_bytes(AttentionDescriptor descriptor not None, bint single_step):
    """Bytes of scratch of a backward call, with one step or several, enough for any family that may
    serve the problem.

    Raises
    ------
    InvalidProblemError
        The descriptor is invalid.
    UnsupportedError
        No family has a backward for its element and head_dim.
    """
    cdef attention_api.baracuda_attention_step_params step
    cdef int64_t most = -1
    descriptor.validate()
    descriptor.fill(&step)
    if single_step:
        step.flags |= attention_api.BARACUDA_STEP_FIRST | attention_api.BARACUDA_STEP_LAST
    for family in _families.OF_DIRECTION[Direction.BACKWARD]:
        if family.has_backward and attention_api.baracuda_attention_available(family.kernel):
            most = max(most, attention_api.baracuda_attention_backward_scratch_bytes(
                family.backward_kernel, &step))
    if most < 0:
        raise UnsupportedError(
            f"descriptor: got {descriptor!r}, must be one whose backward some kernel of this build serves")
    return most


cdef object _capsule(void* function):
    return PyCapsule_New(function, NULL, NULL)
