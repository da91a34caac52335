from collections.abc import Sequence
from typing import Any

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._view import View

class TensorRef(View):
    def __init__(
        self,
        source: Any,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        element: ElementKind | str | None = None,
        *,
        device: int | None = None,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def pointer(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class TensorMut(TensorRef): ...

class DeviceSlice(TensorRef):
    def __init__(
        self,
        source: Any,
        length: int | None = None,
        element: ElementKind | str | None = None,
        *,
        device: int | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
