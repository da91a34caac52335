# cython: language_level=3
"""What XLA needs to call an attention step: handlers, the state's size, position maps."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels._core._errors import UnsupportedError
from baracuda_kernels.ops.attention import _families


def handlers():
    """XLA platform -> stage -> capsule of its handler, as ``register_ffi_target`` takes them.

    What they expect is in ``include/baracuda/xla_ffi.h``.
    """
    return {
        "cpu": {"execute": _capsule(<void*>c_api.baracuda_xla_attention_host)},
        "CUDA": {"execute": _capsule(<void*>c_api.baracuda_xla_attention_cuda),
                 "initialize": _capsule(<void*>c_api.baracuda_xla_attention_cuda_load)},
    }


def state_bytes(AttentionDescriptor descriptor not None):
    """Bytes of a step's state, enough for whichever family may serve the problem.

    Raises
    ------
    InvalidProblemError
        The descriptor is no problem at all.
    UnsupportedError
        No family takes its element and head_dim.
    """
    cdef c_api.baracuda_attention_step_params step
    cdef int64_t most = -1
    descriptor.validate()
    descriptor.fill(&step)
    for family in _families.FAMILIES:
        if c_api.baracuda_attention_available(family.kernel):
            most = max(most, c_api.baracuda_attention_state_bytes(family.kernel, &step))
    if most < 0:
        raise UnsupportedError(f"no kernel takes the state of {descriptor!r}")
    return most


def position_maps(sequence_layout, int32_t world_size, int64_t length):
    """The position map of each rank, rank after rank, as bytes: 4 int64 each.

    Parameters
    ----------
    sequence_layout : SequenceLayout or str
    world_size : int
    length : int
        Rows of one rank.
    """
    cdef int32_t layout = SequenceLayout.parse(sequence_layout), rank
    cdef c_api.baracuda_position_map one
    maps = []
    for rank in range(world_size):
        one = c_api.baracuda_layout_map(layout, rank, world_size, length)
        maps.append(PyBytes_FromStringAndSize(<const char*>&one, sizeof(one)))
    return b"".join(maps)


cdef object _capsule(void* function):
    return PyCapsule_New(function, NULL, NULL)
