"""Hashes of what a build answers, so that two builds can be compared bit for bit.

It needs the installed package, with ``--device cuda`` PyTorch too, and nothing of this folder: a
copy of the file runs beside any build.

    python bits.py --device cuda -o old.json      # with one build, then with the other
    python bits.py --compare old.json new.json    # fails if a case differs or is missing
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("f16", "bf16", "f32", "f64")
LAYOUTS = ("contiguous", "zigzag", "striped")
HEADS = ((2, 2), (4, 2), (4, 1))


class Case(NamedTuple):
    """One call: `rows` and `keys` are a rank's, `form` how it is made, `odd` what is not finite."""

    op: str
    family: str
    dtype: str
    rows: int
    keys: int
    head_dim: int
    causal: bool = False
    layout: str = "contiguous"
    ranks: int = 1
    form: str = "dense"
    odd: str = ""
    heads: int = 2
    kv_heads: int = 2
    batch: int = 1
    scale: float | None = None

    @property
    def name(self) -> str:
        """All fields that are not the default, in one word."""
        given = [f"{k}={v}" for k, v in self._asdict().items() if v != self._field_defaults.get(k)]
        return ",".join(given)


# --- the cases


def host_cases() -> Iterator[Case]:
    """Those of the host family."""
    dims, lengths = (1, 16, 40, 64, 80, 128, 192, 256), (1, 7, 33, 64, 97, 130, 300, 513)
    yield from _calls("host", DTYPES, dims, lengths, lengths[:3])
    yield from _rings("host", DTYPES, (24, 64, 128), (1, 9, 16, 37, 150))
    yield from _others("host", DTYPES, 64, 45)


def cuda_cases() -> Iterator[Case]:
    """Those of the GPU families: lengths on both sides of every tile and of 1536 keys."""
    lengths = (1, 65, 128, 176, 352, 384, 1000, 1408, 1535, 1536, 1537, 2048, 2112, 2304, 3000)
    for family, dims in (("sm90a", (64, 128, 256)), ("sm80", (64, 96, 128, 192, 256))):
        yield from _calls(family, ("bf16", "f16"), dims, lengths, (1, 128, 700, 1537))
        yield from _rings(family, ("bf16", "f16"), dims, (65, 128, 200, 384, 500, 1600))
        yield from _others(family, ("bf16", "f16"), 128, 333)
    yield from _calls("simt", DTYPES, (40, 64, 128, 256), (1, 33, 200, 1000, 1537), (64,))
    yield from _rings("simt", DTYPES, (40, 64, 128), (17, 64, 130))
    yield from _others("simt", DTYPES, 80, 111)


Some = tuple[str, ...]
Sizes = tuple[int, ...]


def _calls(
    family: str, dtypes: Some, dims: Sizes, lengths: Sizes, crossed: Sizes
) -> Iterator[Case]:
    """Single calls: each length with each head_dim, and keys of another number than rows."""
    turn = itertools.count()
    for head_dim, length, causal in itertools.product(dims, lengths, (False, True)):
        n = next(turn)
        heads, kv_heads = HEADS[n % 3]
        yield Case("flash", family, dtypes[(n // 2) % len(dtypes)], length, length, head_dim, causal,
                   heads=heads, kv_heads=kv_heads, batch=1 + n % 2)  # fmt: skip
    for head_dim, keys, dtype in itertools.product(dims, crossed, dtypes):
        n = next(turn)
        yield Case("flash", family, dtype, lengths[n % len(lengths)], keys, head_dim,
                   causal=n % 2 == 1, scale=(None, 0.3, -0.25)[n % 3])  # fmt: skip


def _rings(family: str, dtypes: Some, dims: Sizes, lengths: Sizes) -> Iterator[Case]:
    """Rings of 1 to 8 ranks in every layout, staged and in place by turns."""
    turn = itertools.count()
    for ranks, layout, causal in itertools.product(range(1, 9), LAYOUTS, (False, True)):
        n = next(turn)
        heads, kv_heads = HEADS[n % 3]
        # The whole sequence is no longer than two ranks of the longest.
        rows = min(lengths[n % len(lengths)], 2 * lengths[-1] // ranks)
        # Several dtypes at a time, or their turns would fall together with the layouts'.
        for i, form in enumerate(("staged", "dense")):
            dtype = dtypes[(n + n // len(dtypes) + i) % len(dtypes)]
            yield Case("ring", family, dtype, rows, rows if causal or n % 4 else rows + 5,
                       dims[(n // 2) % len(dims)], causal, layout, ranks, form, heads=heads,
                       kv_heads=kv_heads)  # fmt: skip


def _others(family: str, dtypes: Some, head_dim: int, rows: int) -> Iterator[Case]:
    """What is not finite, operands that are views, and steps that the caller makes."""
    for dtype, causal in itertools.product(dtypes, (False, True)):
        call = Case("flash", family, dtype, rows, rows, head_dim, causal, heads=4)
        ring = call._replace(op="ring", ranks=3, layout="zigzag")
        for odd in ("nan q", "nan k", "inf q", "inf k", "-inf k", "inf v"):
            yield call._replace(odd=odd)
            yield ring._replace(odd=odd)
        yield call._replace(form="views")
        yield ring._replace(form="views", layout="striped")
        for layout in LAYOUTS:
            for form in ("steps", "following steps", "one step"):
                yield ring._replace(op="steps", layout=layout, form=form)


# --- their operands


class Memory:
    """NumPy arrays ("host"), or tensors of PyTorch on the current GPU ("cuda")."""

    def __init__(self, device: str) -> None:
        import baracuda_kernels as bk  # whoever times other builds' calls may have none
        from baracuda_kernels import testing

        self.bk, self.testing, self.dtypes = bk, testing, testing.NUMPY_DTYPES
        self.stream, self._torch = bk.Stream.host(), None
        self.device: str | int = device
        if device == "cuda":
            import torch

            self.stream, self.device, self._torch = bk.Stream(torch.cuda.current_stream()), 0, torch

    def put(self, x: np.ndarray) -> Any:
        """An array where the calls want it, its strides kept."""
        if self._torch is None:
            return x
        if x.dtype == self.dtypes["bf16"]:
            return self._torch.from_numpy(x.view(np.int16)).view(self._torch.bfloat16).cuda()
        return self._torch.from_numpy(x).cuda()

    def filled(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Of NaN."""
        return np.full(shape, np.nan, self.dtypes[dtype])

    def scratch(self, nbytes: int, dtype: str) -> Any:
        """Aligned as any plan wants it, every bit set."""
        raw = np.full(nbytes + 256, 255, dtype=np.uint8)
        start = -raw.ctypes.data % 256
        return self.put(raw[start : start + nbytes].view(self.dtypes[dtype]))

    def wait(self) -> None:
        """Until all that is enqueued has run."""
        if self._torch is not None:
            self._torch.cuda.synchronize()

    def content(self, x: Any) -> bytes:
        if self._torch is not None:
            x = x.contiguous().view(self._torch.uint8).cpu().numpy()
        return np.ascontiguousarray(x).tobytes()


def _view(x: np.ndarray) -> np.ndarray:
    """The same elements, where heads lie behind rows."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


def operands(memory: Memory, case: Case) -> list[np.ndarray]:
    """q, k and v of the whole sequence, of the case's own seed."""
    seed = int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:8], "little")
    qkv = memory.testing.numpy_qkv(
        "normal", case.dtype, seed, batch=case.batch, heads=case.heads, kv_heads=case.kv_heads,
        query_len=case.ranks * case.rows, key_len=case.ranks * case.keys, head_dim=case.head_dim,
    )  # fmt: skip
    value, _, where = case.odd.partition(" ")
    for x in (qkv["qkv".index(where)],) if where else ():  # a whole row, and one element of another
        x[:, 0, x.shape[2] // 2] = float(value)
        x[:, -1, x.shape[2] // 3, 0] = float(value)
    return [*qkv]


# --- their calls


# What enqueues a case once it is prepared, and what it writes: y and lse of every rank.
Prepared = tuple[Callable[..., Any], list[Any]]


def prepared(memory: Memory, case: Case) -> Prepared:
    """A call of the case's, and what it writes."""
    bk, ring = memory.bk, case.op != "flash"
    make = bk.RingAttentionDescriptor if ring else bk.FlashSdpaDescriptor
    layout = {"sequence_layout": bk.SequenceLayout.parse(case.layout)} if ring else {}
    descriptor = make(
        case.batch, case.heads, case.rows, case.keys, case.head_dim, scale=case.scale,
        is_causal=case.causal, element=bk.ElementKind.parse(case.dtype),
        num_kv_heads=case.kv_heads, **layout,
    )  # fmt: skip
    select = (bk.RingAttentionPlan if ring else bk.FlashSdpaPlan).select
    plan = select(memory.stream, descriptor, memory.testing.preference(case.family, case.dtype))
    if plan.family != case.family:
        raise SystemExit(f"{case.name}: served by {plan.family}")
    whole = operands(memory, case)
    cut = [bk.shard(x, case.ranks, sequence_layout=case.layout) if ring else [x] for x in whole]
    lay = _view if case.form == "views" else np.ascontiguousarray
    shards = [[lay(x) for x in of_rank] for of_rank in zip(*cut, strict=True)]
    return {"flash": _flash, "ring": _ring, "steps": _steps}[case.op](memory, case, plan, shards)


def _outputs(memory: Memory, case: Case, q: np.ndarray) -> dict[str, Any]:
    """y and lse for a rank's q."""
    y = memory.filled(q.shape, case.dtype)
    lse = memory.filled(q.shape[:3], "f64" if case.dtype == "f64" else "f32")
    return {"y": memory.put(_view(y) if case.form == "views" else y), "lse": memory.put(lse)}


def _flash(memory: Memory, case: Case, plan: Any, shards: list[list[np.ndarray]]) -> Prepared:
    written = _outputs(memory, case, shards[0][0])
    q, k, v = map(memory.put, shards[0])
    args = memory.bk.FlashSdpaArgs(q=q, k=k, v=v, **written)
    return lambda: plan.run(memory.stream, args), [*written.values()]


def _ring(memory: Memory, case: Case, plan: Any, shards: list[list[np.ndarray]]) -> Prepared:
    bk = memory.bk
    found: list[Any] = []
    of_ranks, stage = [], []
    nbytes = plan.kv_scratch_elements * bk.ElementKind.parse(case.dtype).itemsize
    for q, k, v in shards:
        written = _outputs(memory, case, q)
        found += written.values()
        given = {"q": memory.put(q), **written}
        for name in ("kv_scratch_a", "kv_scratch_b"):
            given[name] = memory.scratch(nbytes, case.dtype)
        given["accumulator_scratch"] = memory.scratch(plan.accumulator_scratch_bytes, "f32")
        if case.form == "staged":
            both = np.concatenate([k.reshape(-1), v.reshape(-1)])
            stage.append((given["kv_scratch_a"], memory.put(both)))
        else:
            given |= {"k": memory.put(k), "v": memory.put(v)}
        of_ranks.append(given)
    arguments = [bk.RingAttentionArgs(**given) for given in of_ranks]
    ring = bk.LocalCommunicator.ring(case.ranks, device=memory.device)

    def run() -> None:
        for scratch, keys_and_values in stage:  # which a run consumes
            scratch[:] = keys_and_values
        ring.run_all(memory.stream, [plan] * case.ranks, arguments)

    def args_made_anew() -> None:
        plan.run(memory.stream, ring[0], bk.RingAttentionArgs(**of_ranks[0]))

    def one_rank() -> None:
        plan.run(memory.stream, ring[0], arguments[0])

    forms = {"one rank": one_rank, "args made anew": args_made_anew}
    return forms.get(case.form, run), found


def _steps(memory: Memory, case: Case, plan: Any, shards: list[list[np.ndarray]]) -> Prepared:
    """Every rank's steps one by one; or each step of each pair of ranks alone."""
    operands = [{n: memory.put(x) for n, x in zip("qkv", of, strict=True)} for of in shards]
    found: list[Any] = []
    calls = []
    for rank in range(case.ranks):
        state = memory.scratch(plan.accumulator_scratch_bytes, "f32")
        for step in range(case.ranks):
            origin, alone = (rank - step) % case.ranks, case.form == "one step"
            if alone or step == 0:
                written = _outputs(memory, case, shards[rank][0])
                found += written.values()
            calls.append({
                **operands[origin], "q": operands[rank]["q"], **written,
                "accumulator_scratch": state, "rank": rank, "origin": origin,
                "world_size": case.ranks, "first": alone or step == 0,
                "last": alone or step + 1 == case.ranks,
                "follows": case.form in ("following steps", "middle step") and step > 0,
            })  # fmt: skip

    def step_all(stream: Any = None) -> None:
        for given in calls:
            plan.step(stream or memory.stream, **given)

    if case.form == "middle step":  # again and again, on the state that the first left
        plan.step(memory.stream, **calls[0])
        del calls[0], calls[1:]
    return step_all, found


def answer(memory: Memory, case: Case) -> str:
    """SHA-256 of y and lse of all ranks, or "refused" where the family does not serve the case."""
    try:
        call, found = prepared(memory, case)
        call()
    except memory.bk.UnsupportedError as error:
        return f"refused: {type(error).__name__}"
    return hashlib.sha256(b"".join(map(memory.content, found))).hexdigest()


def compare(paths: list[Path]) -> int:
    """How many cases of the two files are equal, and which are not; 1 if there is one."""
    old, new = (json.loads(path.read_text()) for path in paths)
    names = list(dict.fromkeys([*old, *new]))
    differ = [name for name in names if old.get(name) != new.get(name)]
    for name in differ:
        print(f"{name}: {old.get(name, 'missing')} and {new.get(name, 'missing')}")
    refused = sum(str(old.get(name)).startswith("refused") for name in names)
    print(f"{len(names) - len(differ)} of {len(names)} cases equal, {refused} of them refused")
    return 1 if differ or not names else 0


def main() -> int:
    """Hash or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("host", "cuda"))
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    given = parser.parse_args()
    if given.compare:
        return compare(given.compare)
    if given.device is None or given.out is None:
        parser.error("give --device and -o, or --compare")
    start = time.monotonic()
    memory = Memory(given.device)
    cases = dict.fromkeys(host_cases() if given.device == "host" else cuda_cases())
    answers = {case.name: answer(memory, case) for case in cases}
    given.out.write_text(json.dumps(answers, indent=1) + "\n")
    served = sum(not a.startswith("refused") for a in answers.values())
    print(f"{served} of {len(cases)} cases hashed in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
