"""Tasks of a pool's rings, and checks of their results against float64 and the local ring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import baracuda_kernels as bk
from baracuda_kernels.testing import TORCH_DTYPES, assert_close, attention, torch_qkv

from .rings import local_ring, same_bits

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 128}


def ring_task(pool: Any, dtype: str, *, rows: int = 192, **options: Any) -> dict[str, Any]:
    """A worker's task `ring`: zigzag and causal by default."""
    shape = {**SHAPE, "query_len": rows * pool.world_size}
    task = {"do": "ring", "dtype": dtype, "seed": 11, "shape": shape}
    return task | {"layout": "zigzag", "is_causal": True, "staged": False, **options}


def gather(torch: Any, pool: Any, task: dict[str, Any]) -> tuple[Any, Any]:
    """y and lse of all ranks from the task's folder, as whole tensors."""
    world_size = pool.world_size
    shape = task["shape"]
    rows = shape["query_len"] // world_size
    lead = (1, shape["heads"], rows)
    folder = Path(pool.folder.name)

    def load(name: str, rank: int, dtype: Any, extent: tuple[int, ...]) -> Any:
        raw = bytearray((folder / f"{name}-{rank}.bin").read_bytes())
        return torch.frombuffer(raw, dtype=dtype).view(extent).cuda()

    dtype = getattr(torch, TORCH_DTYPES[task["dtype"]])
    y = [load("y", r, dtype, (*lead, shape["head_dim"])) for r in range(world_size)]
    lse = [load("lse", r, torch.float32, lead) for r in range(world_size)]
    layout = task["layout"]
    return bk.unshard(y, sequence_layout=layout), bk.unshard(lse, sequence_layout=layout)


def check(torch: Any, pool: Any, task: dict[str, Any]) -> None:
    """Run a task, and compare y and lse with float64 and with the local ring."""
    pool.run(task, seconds=120)
    y, lse = gather(torch, pool, task)
    q, k, v = torch_qkv("normal", task["dtype"], task["seed"], **task["shape"])
    exact = attention(q, k, v, is_causal=task["is_causal"])
    assert_close("sm80", task["dtype"], y, exact[0], lse, exact[1])
    options = {name: task[name] for name in ("layout", "is_causal", "staged")}
    local_y, local_lse = local_ring(
        torch, "sm80", task["dtype"], q, k, v, pool.world_size, **options
    )
    assert same_bits(torch, y, local_y), "y differs from the local ring's"
    assert same_bits(torch, lse, local_lse), "lse differs from the local ring's"
