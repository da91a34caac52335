"""How the command line describes an attention problem."""

from __future__ import annotations

from typing import Any

from baracuda_kernels._core._enums import ElementKind, SequenceLayout
from baracuda_kernels._core._selection import ProblemOption

OPTIONS = (
    ProblemOption("batch", int, 1, "Sequences, B."),
    ProblemOption("heads", int, 8, "Query heads, H."),
    ProblemOption("kv_heads", int, None, "Heads of K and V, Hkv; divides H. [default: H]"),
    ProblemOption("query_len", int, 4096, "Rows per rank."),
    ProblemOption("key_len", int, None, "Keys per rank. [default: the rows]"),
    ProblemOption("head_dim", int, 128, "Elements of a head, D."),
    ProblemOption("dtype", ElementKind, ElementKind.BF16, "Element type of q, k, v and y."),
    ProblemOption("causal", bool, False, "Row i sees the keys up to i."),
    ProblemOption("scale", float, None, "Factor on q·k. [default: 1/sqrt(D)]"),
)
LAYOUT = ProblemOption(
    "layout", SequenceLayout, SequenceLayout.CONTIGUOUS, "How rows are dealt to ranks."
)


def describe(
    descriptor_type: type,
    *,
    batch: int,
    heads: int,
    kv_heads: int | None,
    query_len: int,
    key_len: int | None,
    head_dim: int,
    dtype: ElementKind,
    causal: bool,
    scale: float | None,
    layout: SequenceLayout | None = None,
) -> Any:
    """The descriptor with the values of the options."""
    sharded = {} if layout is None else {"sequence_layout": layout}
    return descriptor_type(
        batch,
        heads,
        query_len,
        query_len if key_len is None else key_len,
        head_dim,
        scale,
        causal,
        dtype,
        num_kv_heads=kv_heads,
        **sharded,
    )
