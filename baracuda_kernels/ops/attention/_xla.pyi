from typing import Any

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.ops.attention._descriptor import AttentionDescriptor

def handlers() -> dict[str, dict[str, Any]]: ...
def state_bytes(descriptor: AttentionDescriptor) -> int: ...
def position_maps(
    sequence_layout: SequenceLayout | str, world_size: int, length: int
) -> bytes: ...
