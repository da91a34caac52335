# cython: language_level=3
"""What a view can be made of: addresses, DLPack, the array interfaces, other views."""

import sys

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uintptr_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._dlpack cimport (
    BaracudaDLManaged,
    BaracudaDLTensor,
    BaracudaDLVersioned,
)
from baracuda_kernels._core._status cimport check, is_of_a_signal
from baracuda_kernels._core._view cimport MAX_DIMS, View, integer, integer_from

from baracuda_kernels._core._enums import (
    BY_DLPACK,
    BY_DTYPE_NAME,
    BY_TYPESTR,
    ElementKind,
)
from baracuda_kernels._core._errors import BaracudaError, InvalidProblemError, UnsupportedError

# DLPack device types: 1 CPU, 2 CUDA, 3 CUDA pinned host, 13 CUDA managed.
_DL_HOST = (1, 3)
_DL_CUDA = (2, 13)

cdef enum:
    # Flags of a versioned DLPack tensor.
    _DL_READ_ONLY = 1
    _DL_IS_COPIED = 2


cdef object fill(View self, str name, object source, object shape, object strides,
                 object element, object device):
    if self.element is not None:
        # Plans keep the address that they checked, and the view keeps its memory alive.
        raise InvalidProblemError(
            f"{name}: got a second source for a {type(self).__name__}, must be a new one")
    if isinstance(source, int) and not isinstance(source, bool):
        _from_address(self, name, source, shape, strides, element, device)
        return None
    try:
        _from_object(self, name, source)
    except (BaracudaError, MemoryError):
        raise
    except Exception as error:  # a tensor may raise anything if it is asked where it lies
        if is_of_a_signal(error):
            raise
        raise InvalidProblemError(
            f"{name}: got a {type(source).__name__} that cannot be viewed "
            f"({type(error).__name__}: {error}), must be a tensor in memory") from error
    if device is not None and not (type(device) is int and device == self.device) \
            and integer(f"{name}: device", device, -1, 2 ** 31) != self.device:
        raise InvalidProblemError(
            f"{name}: got memory on device {self.device}, must be on {device}")
    if shape is not None:
        _reshape_bytes(self, name, shape, strides, element)
    elif strides is not None:
        raise InvalidProblemError(
            f"{name}: got strides {strides!r} alone, must come with a shape")
    elif element is not None:
        wanted = ElementKind.parse(element, f"{name}: element")
        if wanted is not self.element \
                and {wanted, self.element} != {ElementKind.F32, ElementKind.F32_STRICT}:
            raise InvalidProblemError(f"{name}: got {self.element}, must be {wanted}")
    return None


cdef bint _is_integer(object source) except -1:
    import numbers

    return isinstance(source, numbers.Integral)


cdef object _from_object(View self, str name, object source):
    if isinstance(source, View):
        _from_view(self, <View>source)
    elif hasattr(source, "__array_interface__") and not hasattr(source, "__cuda_array_interface__"):
        _from_numpy(self, name, source)
    elif hasattr(source, "__dlpack__"):
        _from_dlpack(self, name, source)
    elif hasattr(source, "__cuda_array_interface__"):
        _from_cuda_interface(self, name, source)
    else:
        raise InvalidProblemError(
            f"{name}: got {type(source).__name__}, must be a tensor with __dlpack__ or "
            "__cuda_array_interface__, a NumPy array, or a TensorRef over an address")
    return None


cdef object _from_address(View self, str name, object address, object shape, object strides,
                          object element, object device):
    cdef int32_t found = -2
    if shape is None or element is None:
        raise InvalidProblemError(
            f"{name}: got an address alone, must come with a shape and an element")
    if address < 0 or address >= 2 ** 64:
        raise InvalidProblemError(f"{name}: got address {address}, must be in [0, 2**64)")
    self.data = <void*><uintptr_t>address
    self.set_element(name, element)
    self.set_shape(name, shape, strides)
    if device is None:
        if c_api.baracuda_cuda_built():
            if c_api.baracuda_cuda_pointer_device(self.data, &found) != c_api.BARACUDA_OK:
                found = -1  # no usable driver: it can only be host memory
        self.device = found if found >= 0 else -1
    else:
        self.device = (device if type(device) is int and -1 <= device < 64
                       else integer(f"{name}: device", device, -1, 2 ** 31))
    self.writable = True
    return None


cdef object _from_view(View self, View source):
    cdef int i
    self.data = source.data
    self.ndim = source.ndim
    for i in range(source.ndim):
        self.dims[i] = source.dims[i]
        self.element_strides[i] = source.element_strides[i]
    self.element = source.element
    self.itemsize = source.itemsize
    self.device = source.device
    self.writable = source.writable
    self.owner = source
    return None


cdef object _byte_strides(View self, str name, object shape, object strides):
    if strides is None:
        self.set_shape(name, shape, None)
        return None
    for i, stride in enumerate(strides):
        if integer_from(name, "strides", stride, -INT64_MAX) % self.itemsize and shape[i] > 1:
            raise InvalidProblemError(
                f"{name}: got a stride of {stride} bytes, must be a multiple of the element's "
                f"{self.itemsize}")
    self.set_shape(name, shape, [stride // self.itemsize for stride in strides])
    return None


cdef object _refuse_mask(str name, object interface, bint is_masked):
    # Both array interfaces may have a mask. NumPy's masked arrays leave it out.
    if is_masked or interface.get("mask") is not None:
        raise InvalidProblemError(
            f"{name}: got a masked array, must be an array without a mask (its mask would be "
            "lost: fill or cut it first)")
    return None


cdef object _from_numpy(View self, str name, object source):
    masked = sys.modules.get("numpy.ma")  # imported, if the source is a masked array
    interface = source.__array_interface__
    if interface["shape"] == () and _is_integer(source):
        # NumPy's numbers are arrays, too, but this one may be meant as an address.
        raise InvalidProblemError(
            f"{name}: got {source} as {type(source).__name__}, must be a tensor, or an int as an "
            "address")
    _refuse_mask(name, interface, masked is not None and isinstance(source, masked.MaskedArray))
    dtype = getattr(source, "dtype", None)
    element = BY_DTYPE_NAME.get(getattr(dtype, "name", None))
    if element is None:
        element = BY_TYPESTR.get(interface["typestr"][1:])
    if element is None or interface["typestr"][0] == ">":
        raise UnsupportedError(
            f"{name}: got dtype {dtype if dtype is not None else interface['typestr']}, must be "
            f"one of {sorted(BY_DTYPE_NAME)} in native byte order")
    self.set_element(name, element)
    data = interface.get("data")
    if not isinstance(data, tuple) or len(data) != 2 or not isinstance(data[0], int):
        # A buffer object is allowed here, as Pillow gives one; it is not an address.
        raise InvalidProblemError(
            f"{name}: {type(source).__name__} does not expose its address; pass "
            "numpy.asarray(...) of it")
    self.data = <void*><uintptr_t>data[0]
    self.writable = not data[1]
    self.device = -1
    self.owner = (source, interface)  # the dict may be the only owner of the memory
    _byte_strides(self, name, interface["shape"], interface.get("strides"))
    return None


cdef object _from_cuda_interface(View self, str name, object source):
    cdef int32_t found = -2
    interface = source.__cuda_array_interface__
    _refuse_mask(name, interface, False)
    element = BY_TYPESTR.get(interface["typestr"][1:])
    if element is None:
        element = BY_DTYPE_NAME.get(getattr(getattr(source, "dtype", None), "name", None))
    if element is None or interface["typestr"][0] == ">":
        raise UnsupportedError(
            f"{name}: got typestr {interface['typestr']!r}, must be one of {sorted(BY_TYPESTR)} in "
            "native byte order")
    self.set_element(name, element)
    self.data = <void*><uintptr_t>(interface["data"][0] or 0)
    self.writable = not interface["data"][1]
    self.owner = source
    _byte_strides(self, name, interface["shape"], interface.get("strides"))
    if self.data != NULL:
        check(c_api.baracuda_cuda_pointer_device(self.data, &found))
    if found < 0:
        check(c_api.baracuda_cuda_current_device(&found))
    self.device = found
    return None


cdef object _from_dlpack(View self, str name, object source):
    cdef BaracudaDLTensor* tensor
    cdef BaracudaDLVersioned* versioned
    cdef int i
    kind, index = source.__dlpack_device__()
    kind = int(kind)
    if kind not in _DL_HOST and kind not in _DL_CUDA:
        raise InvalidProblemError(
            f"{name}: got DLPack device type {kind}, must be host (1, 3) or CUDA (2, 13)")
    is_negative = getattr(source, "is_neg", None)
    if callable(is_negative) and is_negative():
        # PyTorch exports what lies in memory, and leaves out the bit that turns its sign.
        raise InvalidProblemError(
            f"{name}: got a {type(source).__name__} with the negative bit, must be without it: "
            "pass its resolve_neg()")
    capsule = _export(name, source, kind in _DL_CUDA)
    # JAX exports its immutable arrays as writable. Other arrays may share their memory.
    self.writable = type(source).__module__.partition(".")[0] not in ("jax", "jaxlib")
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        versioned = <BaracudaDLVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if versioned.version.major != 1:
            raise UnsupportedError(f"{name}: got DLPack {versioned.version.major}, must be 1.x")
        if versioned.flags & _DL_IS_COPIED:
            raise InvalidProblemError(
                f"{name}: got a copy from the __dlpack__ of a {type(source).__name__}, must be the "
                "tensor's own memory")
        self.writable = self.writable and not (versioned.flags & _DL_READ_ONLY)
        tensor = &versioned.dl_tensor
    elif PyCapsule_IsValid(capsule, "dltensor"):
        tensor = &(<BaracudaDLManaged*>PyCapsule_GetPointer(capsule, "dltensor")).dl_tensor
    else:
        raise InvalidProblemError(f"{name}: got no unused capsule from __dlpack__, must be one")
    element = BY_DLPACK.get((tensor.dtype.code, tensor.dtype.bits))
    if element is None or tensor.dtype.lanes != 1:
        raise UnsupportedError(
            f"{name}: got DLPack type (code {tensor.dtype.code}, {tensor.dtype.bits} bits, "
            f"{tensor.dtype.lanes} lanes), which no kernel knows")
    if (tensor.device.device_type in _DL_CUDA) != (kind in _DL_CUDA):
        raise InvalidProblemError(
            f"{name}: got DLPack device type {tensor.device.device_type} in the capsule of a "
            f"{type(source).__name__}, must be that of its __dlpack_device__, {kind}")
    if not 0 <= tensor.ndim <= MAX_DIMS:
        raise InvalidProblemError(
            f"{name}: got {tensor.ndim} dimensions, must have at most {MAX_DIMS}")
    if tensor.ndim > 0 and tensor.shape == NULL:
        raise InvalidProblemError(
            f"{name}: got a capsule of {tensor.ndim} dimensions without a shape, must have one")
    self.set_element(name, element)
    self.data = NULL
    if tensor.data != NULL:
        self.data = <void*>(<char*>tensor.data + tensor.byte_offset)
    self.set_shape(name, [tensor.shape[i] for i in range(tensor.ndim)],
               None if tensor.strides == NULL else [tensor.strides[i] for i in range(tensor.ndim)])
    if self.numel() > 0 and _is_offset_alone(self, source):
        raise InvalidProblemError(
            f"{name}: got a {type(source).__name__} without memory, must be memory that holds its "
            "elements")
    self.device = -1 if kind in _DL_HOST else tensor.device.device_id
    # The capsule stays unconsumed: its destructor frees the producer's tensor with the view.
    self.owner = (capsule, source)
    return None


cdef bint _is_offset_alone(View self, object source) except -1:
    """Whether a tensor has no memory, as a FakeTensor or a tensor of a freed storage. PyTorch then
    gives its offset in the storage as its address."""
    offset = getattr(source, "storage_offset", None)
    return callable(offset) and <uintptr_t>self.data == offset() * self.itemsize


cdef object _export(str name, object source, bint on_gpu):
    # -1: the producer does not synchronise; the caller orders its work on the plan's stream.
    # JAX takes -1 for a stream's handle and fails; then the default is tried.
    refusal = None
    for stream in ((-1, None) if on_gpu else (None,)):
        try:
            try:
                return source.__dlpack__(stream=stream, max_version=(1, 0))
            except TypeError as error:  # a producer from before DLPack 1.0
                if is_of_a_signal(error):
                    raise
                return source.__dlpack__(stream=stream)
        except (BufferError, RuntimeError) as error:
            if is_of_a_signal(error):
                raise
            refusal = refusal or error
    raise InvalidProblemError(
        f"{name}: {type(source).__name__} refuses to be viewed: {refusal}") from refusal


cdef object _reshape_bytes(View self, str name, object shape, object strides, object element):
    """Give the bytes of a contiguous view, as of a cuda.core buffer, a new shape and element."""
    cdef int64_t available = self.numel() * self.itemsize
    cdef uintptr_t low, high
    if not self.is_dense_bytes():
        raise InvalidProblemError(
            f"{name}: got a view with gaps, must be contiguous to be given a shape")
    self.set_element(name, self.element if element is None else element)
    cdef void* base = self.data
    self.set_shape(name, shape, strides)
    self.extent(&low, &high)
    if low < <uintptr_t>base or high > <uintptr_t>base + <uintptr_t>available:
        raise InvalidProblemError(
            f"{name}: got a buffer of {available} bytes, must hold the {high - low} of shape "
            f"{tuple(shape)} of {self.element}")
    return None
