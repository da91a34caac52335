"""Calls too long to compare all of their rows with float64."""

from __future__ import annotations

from typing import Any

from baracuda_kernels.testing import assert_close, attention


def some_rows(torch: Any, length: int) -> Any:
    """Rows around the edges of query tiles of 64, 128 and 192, and some of all others."""
    edges = [row for tile in (64, 128, 192) for row in range(tile, length, 17 * tile)]
    near = [edge + offset for edge in edges for offset in (-1, 0)]
    found = {*range(70), *near, *range(5, length, 331), *range(length - 70, length)}
    return torch.tensor(sorted(found), device="cuda")


def assert_rows(
    torch: Any, dtype: str, q: Any, k: Any, v: Any, y: Any, lse: Any, *, is_causal: bool
) -> None:
    """Compare some rows of an answer of sm90a with float64."""
    rows = some_rows(torch, q.shape[2])
    exact = attention(q[:, :, rows], k, v, is_causal=is_causal, q_positions=rows)
    assert_close("sm90a", dtype, y[:, :, rows], exact[0], lse[:, :, rows], exact[1])
