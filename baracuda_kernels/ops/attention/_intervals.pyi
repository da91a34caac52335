from baracuda_kernels._core._enums import SequenceLayout

def visible_pairs(
    sequence_layout: SequenceLayout | str,
    world_size: int,
    length: int,
    causal: bool,
    rank: bytes,
    origin: bytes,
) -> bytes: ...
