from baracuda_kernels._core._enums import SequenceLayout

def layout_map(
    layout: SequenceLayout | str, rank: int, world_size: int, length: int
) -> tuple[int, int, int, int]: ...
