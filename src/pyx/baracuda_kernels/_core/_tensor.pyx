# cython: language_level=3
"""Views of the caller's memory: nothing is copied, nothing is allocated on a device."""

import sys

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uintptr_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._dlpack cimport (
    BaracudaDLManaged,
    BaracudaDLTensor,
    BaracudaDLVersioned,
)
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._enums import (
    BY_DLPACK,
    BY_DTYPE_NAME,
    BY_TYPESTR,
    ElementKind,
)
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError

# DLPack device types: 1 CPU, 2 CUDA, 3 CUDA pinned host, 13 CUDA managed.
_DL_HOST = (1, 3)
_DL_CUDA = (2, 13)


cdef class TensorRef:
    """Read-only view of an operand. Holds a reference to its owner, never the memory itself.

    Parameters
    ----------
    source : object or int
        Anything with ``__dlpack__`` or ``__cuda_array_interface__``, a NumPy array (ml_dtypes for
        bfloat16), a cuda.core buffer, or the address of the first element.
    shape, strides : sequence of int, optional
        Required for an address, and allowed for a 1-D byte buffer; strides in elements, row-major
        by default.
    element : ElementKind, optional
        Required for an address and for a byte buffer that is given a shape.
    device : int, optional
        CUDA ordinal, -1 for host memory. For an address the default is what the CUDA driver says.

    Attributes
    ----------
    ndim : int
        Dimensions.
    element : ElementKind
        Of each element.
    itemsize : int
        Bytes of an element.
    device : int
        CUDA ordinal, -1 for host memory.
    writable : bool
        Whether outputs may be written through it.

    Nothing is synchronised: the memory must be valid, and written, in the order of the stream that
    a plan is run on.

    Raises
    ------
    InvalidProblemError
        Not a tensor, a missing or contradictory field, or memory of another kind of device.
    UnsupportedError
        An element type that has no :class:`ElementKind`.
    """

    def __init__(self, source, shape=None, strides=None, element=None, *, device=None):
        _fill(self, "tensor", source, shape, strides, element, device)

    @property
    def shape(self):
        """Extents, as a tuple."""
        return tuple([self.dims[i] for i in range(self.ndim)])

    @property
    def strides(self):
        """Strides in elements, as a tuple."""
        return tuple([self.element_strides[i] for i in range(self.ndim)])

    @property
    def pointer(self):
        """Address of the first element."""
        return <uintptr_t>self.data

    @property
    def nbytes(self):
        """Bytes of all elements, gaps between them not counted."""
        return self.numel() * self.itemsize

    def is_contiguous(self):
        """Whether the elements are dense in row-major order."""
        return self.is_dense_bytes()

    cdef int64_t numel(self) noexcept:
        cdef int64_t n = 1
        cdef int i
        for i in range(self.ndim):
            n *= self.dims[i]
        return n

    cdef bint is_dense_bytes(self) noexcept:
        cdef int64_t expected = 1
        cdef int i
        for i in range(self.ndim - 1, -1, -1):
            if self.dims[i] != 1 and self.element_strides[i] != expected:
                return self.numel() == 0
            expected *= self.dims[i]
        return True

    cdef void extent(self, uintptr_t* low, uintptr_t* high) noexcept:
        cdef int64_t first = 0, last = 0
        cdef int i
        if self.numel() == 0:
            low[0] = high[0] = <uintptr_t>self.data
            return
        for i in range(self.ndim):
            if self.element_strides[i] < 0:
                first += self.element_strides[i] * (self.dims[i] - 1)
            else:
                last += self.element_strides[i] * (self.dims[i] - 1)
        low[0] = <uintptr_t>self.data + <uintptr_t>(first * self.itemsize)
        high[0] = <uintptr_t>self.data + <uintptr_t>((last + 1) * self.itemsize)

    def _interface(self):
        return {
            "shape": self.shape,
            "strides": tuple([s * self.itemsize for s in self.strides]),
            "typestr": "<" + (self.element.typestr or f"V{self.itemsize}"),
            "data": (self.pointer, not self.writable),
            "version": 3,
        }

    @property
    def __cuda_array_interface__(self):
        if self.device < 0:
            raise AttributeError("host memory has no __cuda_array_interface__")
        return {**self._interface(), "stream": None}

    @property
    def __array_interface__(self):
        if self.device >= 0:
            raise AttributeError("device memory has no __array_interface__")
        return self._interface()

    def __repr__(self):
        where = "host" if self.device < 0 else f"cuda:{self.device}"
        return (f"{type(self).__name__}(shape={self.shape}, strides={self.strides}, "
                f"element={self.element}, device={where}, pointer={self.pointer:#x})")


cdef class TensorMut(TensorRef):
    """Writable view of an output; a read-only source is an :class:`InvalidProblemError`."""

    def __init__(self, source, shape=None, strides=None, element=None, *, device=None):
        _fill(self, "tensor", source, shape, strides, element, device)
        if not self.writable:
            raise InvalidProblemError(
                f"tensor: got read-only memory ({type(source).__name__}), must be writable")


cdef class DeviceSlice(TensorRef):
    """Contiguous 1-D run of elements: scratch, or a message of a :class:`Transport`.

    Host slices offer the buffer protocol (``memoryview(slice)``), device slices
    ``__cuda_array_interface__``.

    Parameters
    ----------
    source : object or int
        As for :class:`TensorRef`; a contiguous tensor of any shape is flattened.
    length : int, optional
        Elements; required for an address.
    element : ElementKind, optional
        Required for an address.
    device : int, optional
        CUDA ordinal, -1 for host memory.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        As :class:`TensorRef`; also a tensor that is not contiguous.
    """

    def __init__(self, source, length=None, element=None, *, device=None):
        shape = None if length is None else (length,)
        _fill(self, "slice", source, shape, None, element, device)
        if not self.is_dense_bytes():
            raise InvalidProblemError(
                f"slice: got strides {self.strides} for shape {self.shape}, must be contiguous")
        self.dims[0] = self.numel()
        self.element_strides[0] = 1
        self.ndim = 1

    def __len__(self):
        return self.dims[0]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.device >= 0:
            raise BufferError("device memory has no buffer; use __cuda_array_interface__")
        if (flags & 1) and not self.writable:  # PyBUF_WRITABLE
            raise BufferError("slice: read-only memory, a writable buffer was asked for")
        buffer.buf = self.data
        buffer.len = self.dims[0] * self.itemsize
        buffer.readonly = not self.writable
        buffer.itemsize = 1
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = &buffer.len
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL
        buffer.obj = self

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef DeviceSlice raw_slice(void* data, int64_t nbytes, int device, bint writable):
    cdef DeviceSlice self = DeviceSlice.__new__(DeviceSlice)
    self.data = data
    self.ndim = 1
    self.dims[0] = nbytes
    self.element_strides[0] = 1
    self.element = ElementKind.U8
    self.itemsize = 1
    self.device = device
    self.writable = writable
    return self


cdef TensorRef as_tensor(str name, object operand):
    cdef TensorRef self
    if operand is None:
        return None
    if isinstance(operand, TensorRef):
        return <TensorRef>operand
    if isinstance(operand, int):
        raise InvalidProblemError(
            f"{name}: got the bare address {operand:#x}; wrap it as "
            "TensorRef(address, shape, element=..., device=...) so that its shape is known")
    self = TensorRef.__new__(TensorRef)
    _fill(self, name, operand, None, None, None, None)
    return self


cdef object _fill(TensorRef self, str name, object source, object shape, object strides,
                  object element, object device):
    if isinstance(source, int) and not isinstance(source, bool):
        _from_address(self, name, source, shape, strides, element, device)
        return None
    if isinstance(source, TensorRef):
        _from_view(self, <TensorRef>source)
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
    if device is not None and not (type(device) is int and device == self.device) \
            and integer(f"{name}: device", device, -1, 2 ** 31) != self.device:
        raise InvalidProblemError(
            f"{name}: got memory on device {self.device}, must be on {device}")
    if shape is not None:
        _reshape_bytes(self, name, shape, strides, element)
    elif element is not None and ElementKind.parse(element) is not self.element:
        if {ElementKind.parse(element), self.element} != {ElementKind.F32, ElementKind.F32_STRICT}:
            raise InvalidProblemError(
                f"{name}: got {self.element}, must be {ElementKind.parse(element)}")
    return None


cdef extern from *:
    """
    #include <stdint.h>

    // Whether all that a view spans has addresses, and a size in bytes below 2^63.
    static int baracuda_spans_memory(const int64_t* dims, const int64_t* strides, int ndim,
                                     int64_t itemsize, uintptr_t data) {
        int64_t count = itemsize, first = 0, last = itemsize, reach;
        uintptr_t end;
        int i;
        for (i = 0; i < ndim; ++i) {
            if (dims[i] == 0) return 1;
        }
        for (i = 0; i < ndim; ++i) {
            if (__builtin_mul_overflow(count, dims[i], &count)) return 0;
            if (dims[i] == 1) continue;
            if (__builtin_mul_overflow(strides[i], dims[i] - 1, &reach) ||
                __builtin_mul_overflow(reach, itemsize, &reach) ||
                __builtin_add_overflow(strides[i] < 0 ? first : last, reach,
                                       strides[i] < 0 ? &first : &last)) {
                return 0;
            }
        }
        return data >= (uintptr_t)0 - (uintptr_t)first &&
               !__builtin_add_overflow(data, (uintptr_t)last, &end);
    }
    """
    bint baracuda_spans_memory(const int64_t* dims, const int64_t* strides, int ndim,
                               int64_t itemsize, uintptr_t data) noexcept nogil


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1


cdef int64_t _whole(str name, str what, object value, int64_t low) except? -1:
    """As integer(), of low or more in 64 bits, without a text for every value that is right."""
    cdef int overflow = 0
    cdef int64_t number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and number >= low:
            return number
    return integer(f"{name}: {what}", value, low, 2 ** 63)


cdef int64_t integer(str name, object value, object low, object end) except? -1:
    """An integer in [low, end) and nothing that would have to be rounded to one."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidProblemError(f"{name}: got {value!r}, must be an integer")
    whole = value.__index__()
    if not low <= whole < end:
        raise InvalidProblemError(f"{name}: got {whole}, must be in [{low}, {end})")
    return whole


cdef tuple _sequence(str name, str what, object given):
    try:
        return tuple(given)
    except TypeError:
        raise InvalidProblemError(
            f"{name}: got {what} {given!r}, must be a sequence of integers") from None


cdef object _set_shape(TensorRef self, str name, object shape, object strides):
    """The data and the element are set before."""
    cdef int i
    shape = _sequence(name, "shape", shape)
    if strides is not None:
        strides = _sequence(name, "strides", strides)
    if len(shape) > MAX_DIMS:
        raise InvalidProblemError(
            f"{name}: got {len(shape)} dimensions, must have at most {MAX_DIMS}")
    if strides is not None and len(strides) != len(shape):
        raise InvalidProblemError(
            f"{name}: got {len(strides)} strides, must be one for each of {len(shape)} dimensions")
    self.ndim = len(shape)
    for i in range(self.ndim):
        self.dims[i] = _whole(name, "shape", shape[i], 0)
    if strides is None:
        _row_major(self)
    else:
        for i in range(self.ndim):
            self.element_strides[i] = _whole(name, "strides", strides[i], -INT64_MAX)
    if not baracuda_spans_memory(self.dims, self.element_strides, self.ndim, self.itemsize,
                                 <uintptr_t>self.data):
        raise InvalidProblemError(
            f"{name}: got shape {shape} with strides {strides}, which spans more bytes than a "
            "memory has")
    return None


cdef object _set_element(TensorRef self, str name, object element):
    self.element = ElementKind.parse(element)
    self.itemsize = self.element.itemsize
    if self.itemsize == 0:
        raise UnsupportedError(f"{name}: got {self.element}, must be a type of whole bytes")
    return None


cdef object _from_address(TensorRef self, str name, object address, object shape, object strides,
                          object element, object device):
    cdef int32_t found = -2
    if shape is None or element is None:
        raise InvalidProblemError(
            f"{name}: got an address alone, must come with a shape and an element")
    if address < 0 or address >= 2 ** 64:
        raise InvalidProblemError(f"{name}: got address {address}, must be in [0, 2**64)")
    self.data = <void*><uintptr_t>address
    _set_element(self, name, element)
    _set_shape(self, name, shape, strides)
    if self.data == NULL and self.numel() > 0:
        raise InvalidProblemError(f"{name}: got a null address, must hold shape {tuple(shape)}")
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


cdef object _from_view(TensorRef self, TensorRef source):
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


cdef object _byte_strides(TensorRef self, str name, object shape, object strides):
    if strides is None:
        _set_shape(self, name, shape, None)
        return None
    for i, stride in enumerate(strides):
        if _whole(name, "strides", stride, -INT64_MAX) % self.itemsize and shape[i] > 1:
            raise InvalidProblemError(
                f"{name}: got a stride of {stride} bytes, must be a multiple of the element's "
                f"{self.itemsize}")
    _set_shape(self, name, shape, [stride // self.itemsize for stride in strides])
    return None


cdef object _from_numpy(TensorRef self, str name, object source):
    masked = sys.modules.get("numpy.ma")  # whoever has a masked array has imported it
    if masked is not None and isinstance(source, masked.MaskedArray):
        raise InvalidProblemError(
            f"{name}: got a masked array, must be an array without a mask (its mask would be "
            "lost: fill or cut it first)")
    interface = source.__array_interface__
    dtype = getattr(source, "dtype", None)
    element = BY_DTYPE_NAME.get(getattr(dtype, "name", None))
    if element is None:
        element = BY_TYPESTR.get(interface["typestr"][1:])
    if element is None or interface["typestr"][0] == ">":
        raise UnsupportedError(
            f"{name}: got dtype {dtype if dtype is not None else interface['typestr']}, must be "
            f"one of {sorted(BY_DTYPE_NAME)} in native byte order")
    _set_element(self, name, element)
    data = interface.get("data")
    if not isinstance(data, tuple) or len(data) != 2 or not isinstance(data[0], int):
        # A buffer object is allowed there, such as Pillow's, and would be read as an address.
        raise InvalidProblemError(
            f"{name}: {type(source).__name__} does not expose its address; pass "
            "numpy.asarray(...) of it")
    self.data = <void*><uintptr_t>data[0]
    self.writable = not data[1]
    self.device = -1
    self.owner = (source, interface)  # whatever the address is of may hang on the dict alone
    _byte_strides(self, name, interface["shape"], interface.get("strides"))
    return None


cdef object _from_cuda_interface(TensorRef self, str name, object source):
    cdef int32_t found = -2
    interface = source.__cuda_array_interface__
    element = BY_TYPESTR.get(interface["typestr"][1:])
    if element is None:
        element = BY_DTYPE_NAME.get(getattr(getattr(source, "dtype", None), "name", None))
    if element is None:
        raise UnsupportedError(
            f"{name}: got typestr {interface['typestr']!r}, must be one of {sorted(BY_TYPESTR)}")
    _set_element(self, name, element)
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


cdef object _from_dlpack(TensorRef self, str name, object source):
    cdef BaracudaDLTensor* tensor
    cdef BaracudaDLVersioned* versioned
    cdef int i
    kind, index = source.__dlpack_device__()
    kind = int(kind)
    if kind not in _DL_HOST and kind not in _DL_CUDA:
        raise InvalidProblemError(
            f"{name}: got DLPack device type {kind}, must be host (1, 3) or CUDA (2, 13)")
    capsule = _export(name, source, kind in _DL_CUDA)
    self.writable = True
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        versioned = <BaracudaDLVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if versioned.version.major != 1:
            raise UnsupportedError(f"{name}: got DLPack {versioned.version.major}, must be 1.x")
        self.writable = not (versioned.flags & 1)
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
    _set_element(self, name, element)
    self.data = <void*>(<char*>tensor.data + tensor.byte_offset)
    _set_shape(self, name, [tensor.shape[i] for i in range(tensor.ndim)],
               None if tensor.strides == NULL else [tensor.strides[i] for i in range(tensor.ndim)])
    self.device = -1 if kind in _DL_HOST else tensor.device.device_id
    # The capsule stays unconsumed: its own destructor frees the producer's tensor with us.
    self.owner = (capsule, source)
    return None


cdef object _export(str name, object source, bint on_gpu):
    # -1: the producer does not synchronise; the caller orders its work on the plan's stream.
    # JAX takes -1 for a stream's handle and fails, so the default is tried after it.
    refusal = None
    for stream in ((-1, None) if on_gpu else (None,)):
        try:
            try:
                return source.__dlpack__(stream=stream, max_version=(1, 0))
            except TypeError:  # a producer from before DLPack 1.0
                return source.__dlpack__(stream=stream)
        except (BufferError, RuntimeError) as error:
            refusal = refusal or error
    raise InvalidProblemError(
        f"{name}: {type(source).__name__} refuses to be viewed: {refusal}") from refusal


cdef object _reshape_bytes(TensorRef self, str name, object shape, object strides, object element):
    """Gives a 1-D buffer (a cuda.core buffer comes as bytes) a shape and an element type."""
    cdef int64_t available = self.numel() * self.itemsize
    cdef uintptr_t low, high
    if not self.is_dense_bytes():
        raise InvalidProblemError(
            f"{name}: got a view with gaps, must be contiguous to be given a shape")
    _set_element(self, name, self.element if element is None else element)
    cdef void* base = self.data
    _set_shape(self, name, shape, strides)
    self.extent(&low, &high)
    if low < <uintptr_t>base or high > <uintptr_t>base + <uintptr_t>available:
        raise InvalidProblemError(
            f"{name}: got a buffer of {available} bytes, must hold the {high - low} of shape "
            f"{tuple(shape)} of {self.element}")
    return None


cdef void _row_major(TensorRef self) noexcept:
    cdef int64_t step = 1
    cdef int i
    for i in range(self.ndim - 1, -1, -1):
        self.element_strides[i] = step
        step *= self.dims[i]
