# cython: language_level=3, cdivision=True
"""The checks of any op's operands, before anything is launched."""

from libc.stdint cimport int64_t, uintptr_t

from baracuda_kernels._core._tensor cimport TensorRef
from baracuda_kernels._core._view cimport MAX_DIMS

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._errors import (
    BufferTooSmallError,
    InvalidProblemError,
    MisalignedOperandError,
    WorkspaceTooSmallError,
)


cdef class OperandChecks:
    def __cinit__(self, element, int device, int alignment, *more):
        self.element = element
        self.itemsize = element.itemsize
        self.device = device
        self.alignment = max(alignment, self.itemsize)
        self.inputs = []
        self.outputs = []

    cdef int common(self, str name, TensorRef view, bint output) except -1:
        if view is None:
            raise InvalidProblemError(f"{name}: got None, must be given")
        if view.device != self.device and view.numel() > 0:
            raise InvalidProblemError(
                f"{name}: got memory on {_place(view.device)}, must be on {_place(self.device)}")
        if output and not view.writable:
            raise InvalidProblemError(f"{name}: got read-only memory, must be writable")
        return 0

    cdef int aligned(self, str name, TensorRef view, int alignment) except -1:
        if <uintptr_t>view.data % <uintptr_t>alignment and view.numel() > 0:
            raise MisalignedOperandError(
                f"{name}: got address {<uintptr_t>view.data:#x}, must be a multiple of {alignment} "
                "bytes")
        return 0

    cdef TensorRef scratch(self, str name, TensorRef view, int64_t elements):
        self.common(name, view, True)
        if not same_element(view.element, self.element) and view.itemsize != 1:
            raise InvalidProblemError(
                f"{name}: got {view.element}, must be {self.element} or bytes")
        if not view.is_dense_bytes():
            raise InvalidProblemError(f"{name}: got strides {view.strides}, must be contiguous")
        if view.numel() * view.itemsize < elements * self.itemsize:
            raise BufferTooSmallError(elements, view.numel() * view.itemsize // self.itemsize,
                                      name)
        self.aligned(name, view, self.alignment)
        self.outputs.append((name, view))
        return view

    cdef TensorRef workspace(self, str name, TensorRef view, int64_t nbytes):
        self.common(name, view, True)
        if not view.is_dense_bytes():
            raise InvalidProblemError(f"{name}: got strides {view.strides}, must be contiguous")
        if view.numel() * view.itemsize < nbytes:
            raise WorkspaceTooSmallError(nbytes, view.numel() * view.itemsize, name)
        self.aligned(name, view, SCRATCH_ALIGNMENT)
        self.outputs.append((name, view))
        return view

    cdef int no_overlaps(self) except -1:
        cdef TensorRef one, other
        for i, (name, view) in enumerate(self.outputs):
            one = view
            for other_name, other_view in self.inputs + self.outputs[i + 1:]:
                other = other_view
                if _overlap(one, other):
                    raise InvalidProblemError(
                        f"{name}: got memory that overlaps {other_name}, must be separate")
        return 0


cdef class _Range:
    """The bytes from the first to the last that an operand of a rank touches."""

    cdef uintptr_t low, high
    cdef int rank
    cdef bint output
    cdef str name
    cdef TensorRef view

    def __lt__(self, other):
        return self.low < (<_Range>other).low


cdef list _ranges(list ranks):
    cdef _Range one
    cdef OperandChecks checks
    found = []
    for rank, given in enumerate(ranks):
        if given is None:
            continue
        checks = given
        for output in (False, True):
            for name, view in checks.outputs if output else checks.inputs:
                one = _Range()
                one.rank, one.output, one.name, one.view = rank, output, name, view
                one.view.extent(&one.low, &one.high)
                if one.low != one.high:
                    found.append(one)
    return found


cdef int no_shared_outputs(list ranks) except -1:
    cdef _Range one, other
    cdef list reached = []
    # By their first bytes: only ranges that have begun and not ended may overlap the next one.
    for one in sorted(_ranges(ranks)):
        reached = [other for other in reached if (<_Range>other).high > one.low]
        for other in reached:
            if one.rank == other.rank or not (one.output or other.output):
                continue
            if _overlap(one.view, other.view):
                if not one.output:
                    one, other = other, one
                raise InvalidProblemError(
                    f"{one.name}: got memory of rank {one.rank} that overlaps {other.name} of rank "
                    f"{other.rank}, must be separate")
        reached.append(one)
    return 0


cdef str _place(int device):
    return "the host" if device < 0 else f"cuda:{device}"


cdef bint is_bytes(TensorRef view) noexcept:
    return view.ndim == 1 and view.itemsize == 1 and view.is_dense_bytes()


cdef bint same_element(object a, object b):
    if a is b:
        return True
    strict = (ElementKind.F32, ElementKind.F32_STRICT)
    return a in strict and b in strict


cdef int no_self_overlap(str name, TensorRef view) except -1:
    """Refuse a view whose elements may overlap. A stride must be at least the number of elements
    that the dimensions with smaller strides span."""
    cdef int64_t span = 1
    order = sorted([i for i in range(view.ndim) if view.dims[i] > 1],
                   key=lambda i: abs(view.element_strides[i]))
    for i in order:
        step = abs(view.element_strides[i])
        if step < span:
            raise InvalidProblemError(
                f"{name}: got strides {view.strides} for shape {view.shape}, must not let "
                "elements overlap")
        span = step * (view.dims[i] - 1) + span
    return 0


cdef struct _Search:
    int count
    int visited
    int64_t step[2 * MAX_DIMS + 1]   # > 0, descending
    int64_t low[2 * MAX_DIMS + 1]
    int64_t high[2 * MAX_DIMS + 1]


cdef bint _overlap(TensorRef a, TensorRef b):
    """Whether two views share a byte.

    Views of one packed tensor may interleave without a shared byte. So if the extents overlap, a
    shared address is searched for.
    """
    cdef uintptr_t a_low, a_high, b_low, b_high
    cdef _Search search
    cdef int i
    a.extent(&a_low, &a_high)
    b.extent(&b_low, &b_high)
    if a_low == a_high or b_low == b_high or a_high <= b_low or b_high <= a_low:
        return False
    # a.data + sum(i * step) + byte == b.data + sum(j * step) + byte, with one variable for each
    # dimension; it is i - j if both views have the same step.
    search.count = 0
    search.visited = 0
    _add(&search, 1, -(b.itemsize - 1), a.itemsize - 1)
    for i in range(max(a.ndim, b.ndim)):
        if (i < a.ndim and i < b.ndim
                and a.element_strides[i] * a.itemsize == b.element_strides[i] * b.itemsize):
            _add(&search, a.element_strides[i] * a.itemsize, -(b.dims[i] - 1), a.dims[i] - 1)
            continue
        if i < a.ndim:
            _add(&search, a.element_strides[i] * a.itemsize, 0, a.dims[i] - 1)
        if i < b.ndim:
            _add(&search, -b.element_strides[i] * b.itemsize, 0, b.dims[i] - 1)
    return _meets(&search, 0, <int64_t>(<uintptr_t>b.data - <uintptr_t>a.data))


cdef void _add(_Search* search, int64_t step, int64_t low, int64_t high) noexcept:
    cdef int i = search.count
    if step == 0 or low == high == 0:
        return
    if step < 0:
        step, low, high = -step, -high, -low
    while i > 0 and search.step[i - 1] < step:
        search.step[i] = search.step[i - 1]
        search.low[i] = search.low[i - 1]
        search.high[i] = search.high[i - 1]
        i -= 1
    search.step[i] = step
    search.low[i] = low
    search.high[i] = high
    search.count += 1


cdef bint _meets(_Search* search, int at, int64_t target) noexcept:
    """Whether the variables from ``at`` on can add up to ``target``. A search that takes too long
    is given up, and the answer is True."""
    cdef int64_t least = 0, most = 0, first, last, step
    cdef int i
    if at == search.count:
        return target == 0
    search.visited += 1
    if search.visited > 10000:
        return True
    for i in range(at + 1, search.count):
        least += search.low[i] * search.step[i]
        most += search.high[i] * search.step[i]
    step = search.step[at]
    first = max(search.low[at], _ceil_div(target - most, step))
    last = min(search.high[at], _floor_div(target - least, step))
    while first <= last:
        if _meets(search, at + 1, target - first * step):
            return True
        first += 1
    return False


cdef int64_t _floor_div(int64_t a, int64_t b) noexcept:
    return a / b - (a % b != 0 and a < 0)


cdef int64_t _ceil_div(int64_t a, int64_t b) noexcept:
    return a / b + (a % b != 0 and a > 0)
