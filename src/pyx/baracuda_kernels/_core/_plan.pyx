# cython: language_level=3
"""Base of all plans: the kernel that was chosen for a descriptor, and its device."""

from baracuda_kernels._core._stream cimport Stream, as_stream

from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._architecture import Architecture


cdef object MADE_BY_SELECT = object()


cdef class KernelPlan:
    """Base of all plans. Made by ``select`` of a subclass.

    Attributes
    ----------
    descriptor : the op's descriptor
    sku : KernelSku
        The chosen kernel.
    family : str
        Kernel family of the SKU, e.g. "sm80".
    device : int
        CUDA ordinal, -1 for the host.
    """

    def __cinit__(self, *made):
        # Checked here and not in __init__, which a subclass may leave out: a plan without a kernel
        # would crash.
        if len(made) != 1 or made[0] is not MADE_BY_SELECT:
            name = type(self).__name__
            raise TypeError(f"{name}: use {name}.select(descriptor, stream)")

    def __reduce__(self):
        raise TypeError(
            f"{type(self).__name__}: cannot be pickled or copied, as its kernel is loaded in this "
            "process; pickle its descriptor and select again")

    @property
    def precision_guarantee(self):
        """The SKU's :class:`PrecisionGuarantee`."""
        return self.sku.precision_guarantee

    cdef object choose(self, object spec, object descriptor, object stream, object preference,
                       object direction):
        cdef Stream one
        if isinstance(stream, spec.descriptor_type) or isinstance(descriptor, Stream):
            descriptor, stream = stream, descriptor
        one = as_stream(stream)
        arch = Architecture.of_device(one.device)
        chosen = spec.explain(descriptor, arch, preference, direction).require()
        self.descriptor = descriptor
        self.sku = chosen.sku
        self.family = chosen.family
        self.device = one.device
        return chosen.entry

    cdef int refuse_stream(self, Stream stream) except -1:
        if stream.device != self.device:
            raise InvalidProblemError(
                f"stream: got device {stream.device}, must be on the plan's device, {self.device}")
        return 0

    def __repr__(self):
        return f"{type(self).__name__}({self.descriptor!r}, family={self.family!r})"
