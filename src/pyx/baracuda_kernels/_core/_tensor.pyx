# cython: language_level=3
"""Views of the caller's memory: nothing is copied, nothing is allocated on a device."""

from libc.stdint cimport int64_t, uintptr_t

from baracuda_kernels._core._view cimport View
from baracuda_kernels._core._view_sources cimport fill

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._errors import InvalidProblemError


cdef class TensorRef(View):
    """View of an operand, input or output. Holds a reference to the memory's owner.

    Nothing is synchronised: the plan's stream must order the work that writes the memory before the
    plan, and the memory must stay valid until the plan's work is done.

    Parameters
    ----------
    source : object or int
        Anything with ``__dlpack__`` or ``__cuda_array_interface__``, a NumPy array (ml_dtypes for
        bfloat16), a cuda.core buffer, or the address of the first element.
    shape, strides : sequence of int, optional
        Required for an address. The bytes of a contiguous source, such as a byte buffer, can be
        viewed in another shape. At most 8 dimensions; strides in elements, row-major by default,
        and only with a shape.
    element : ElementKind, optional
        Required for an address; by default the source's. With a shape, the bytes of a source can be
        viewed as another type.
    device : int, optional
        CUDA ordinal, -1 for host memory. The default is the source's; the CUDA runtime gives that
        of an address.

    Attributes
    ----------
    ndim : int
        Number of dimensions.
    element : ElementKind
        Type of the elements.
    itemsize : int
        Size of an element in bytes.
    device : int
        CUDA ordinal, -1 for host memory.
    writable : bool
        Whether outputs may be written through it. Not through views of JAX arrays, which are
        immutable.

    Raises
    ------
    InvalidProblemError
        Not a tensor, a tensor without memory or with a mask, a copy that DLPack made, a field that
        is missing or contradicts another, or memory of a device that is neither the host nor CUDA.
    UnsupportedError
        An element type that has no :class:`ElementKind`.
    """

    def __init__(self, source, shape=None, strides=None, element=None, *, device=None):
        fill(self, "tensor", source, shape, strides, element, device)

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
        """Bytes of all elements, without the gaps between them."""
        return self.numel() * self.itemsize

    def is_contiguous(self):
        """True if the elements are dense in row-major order."""
        return self.is_dense_bytes()

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
        fill(self, "tensor", source, shape, strides, element, device)
        if not self.writable:
            raise InvalidProblemError(
                f"tensor: got read-only memory ({type(source).__name__}), must be writable")


cdef class DeviceSlice(TensorRef):
    """Contiguous 1-D view of elements: scratch, or a message of a :class:`Transport`.

    Host slices offer the buffer protocol (``memoryview(slice)``), device slices
    ``__cuda_array_interface__``.

    Parameters
    ----------
    source : object or int
        As for :class:`TensorRef`; a contiguous tensor of any shape is flattened.
    length : int, optional
        Number of elements; required for an address.
    element : ElementKind, optional
        Required for an address.
    device : int, optional
        CUDA ordinal, -1 for host memory.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        As :class:`TensorRef`; also if the tensor is not contiguous.
    """

    def __init__(self, source, length=None, element=None, *, device=None):
        shape = None if length is None else (length,)
        fill(self, "slice", source, shape, None, element, device)
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
    fill(self, name, operand, None, None, None, None)
    return self
