"""Every kind of bad operand is a typed error before any launch, and nothing is written or
leaked."""

import gc
import sys

import numpy as np
import pytest
from helpers.rings import preference

import baracuda_kernels as bk

pytestmark = pytest.mark.gpu

E = bk.errors
B, H, HKV, Q, K, D = 1, 4, 2, 64, 64, 64
RANKS = 3  # with two, K and V in place need only one scratch buffer


def _good(torch) -> dict:
    """Arguments of one rank of a bf16 ring that a plan accepts, with a sentinel in the outputs."""
    bf16 = {"dtype": torch.bfloat16, "device": "cuda"}
    kv = 2 * B * HKV * K * D
    return {
        "q": torch.randn(B, H, Q, D, **bf16),
        "k": torch.randn(B, HKV, K, D, **bf16),
        "v": torch.randn(B, HKV, K, D, **bf16),
        "y": torch.full((B, H, Q, D), 7.0, **bf16),
        "lse": torch.full((B, H, Q), 7.0, device="cuda"),
        "kv_scratch_a": torch.zeros(kv, **bf16),
        "kv_scratch_b": torch.zeros(kv, **bf16),
        "accumulator_scratch": torch.zeros(1 << 20, dtype=torch.uint8, device="cuda"),
    }


def _misaligned(torch, x):
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    return flat.view(x.shape).copy_(x)


def _last_dim_strided(torch, x):
    return torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)[..., ::2]


def _with_gaps(torch, x):
    wide = torch.empty(*x.shape[:2], 2 * x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
    return wide[:, :, ::2]


def _broadcast(torch, x):
    return x[:, :, :1].expand(x.shape)


def _odd_row_stride(torch, x):
    shape = (*x.shape[:3], x.shape[3] + 1)
    return torch.empty(shape, dtype=x.dtype, device=x.device)[..., : x.shape[3]]


# name: (error, argument -> bad value). The function gets torch and the good arguments.
BAD = {
    "q is None": (E.InvalidProblemError, lambda t, a: {"q": None}),
    "y is None": (E.InvalidProblemError, lambda t, a: {"y": None}),
    "q is no tensor": (E.InvalidProblemError, lambda t, a: {"q": "q"}),
    "q is a list": (E.InvalidProblemError, lambda t, a: {"q": [1.0]}),
    "q on the host": (E.InvalidProblemError, lambda t, a: {"q": a["q"].cpu()}),
    "y on the host": (E.InvalidProblemError, lambda t, a: {"y": a["y"].cpu()}),
    "lse on the host": (E.InvalidProblemError, lambda t, a: {"lse": a["lse"].cpu()}),
    "k on the host": (E.InvalidProblemError, lambda t, a: {"k": a["k"].cpu()}),
    "v is NumPy": (
        E.InvalidProblemError,
        lambda t, a: {"v": np.zeros(a["v"].shape, np.float16)},
    ),
    "scratch on the host": (
        E.InvalidProblemError,
        lambda t, a: {"kv_scratch_a": a["kv_scratch_a"].cpu()},
    ),
    "q of another dtype": (E.InvalidProblemError, lambda t, a: {"q": a["q"].half()}),
    "y of another dtype": (E.InvalidProblemError, lambda t, a: {"y": a["y"].float()}),
    "v of another dtype": (E.InvalidProblemError, lambda t, a: {"v": a["v"].float()}),
    "lse of another dtype": (E.InvalidProblemError, lambda t, a: {"lse": a["lse"].double()}),
    "q of three dimensions": (E.InvalidProblemError, lambda t, a: {"q": a["q"][0]}),
    "q one row short": (E.InvalidProblemError, lambda t, a: {"q": a["q"][:, :, 1:]}),
    "q of a wrong head_dim": (E.InvalidProblemError, lambda t, a: {"q": a["q"][..., :32]}),
    "y of a wrong shape": (E.InvalidProblemError, lambda t, a: {"y": a["y"][:, :2]}),
    "k of too many heads": (
        E.InvalidProblemError,
        lambda t, a: {"k": a["k"].repeat(1, 2, 1, 1)},
    ),
    "lse of a wrong shape": (E.InvalidProblemError, lambda t, a: {"lse": a["lse"][..., :5]}),
    "lse not dense": (
        E.InvalidProblemError,
        lambda t, a: {"lse": t.empty(B, H, 2 * Q, device="cuda")[..., ::2]},
    ),
    "q: last dimension strided": (
        E.InvalidProblemError,
        lambda t, a: {"q": _last_dim_strided(t, a["q"])},
    ),
    "y: last dimension strided": (
        E.InvalidProblemError,
        lambda t, a: {"y": _last_dim_strided(t, a["y"])},
    ),
    "y overlaps itself": (E.InvalidProblemError, lambda t, a: {"y": _broadcast(t, a["y"])}),
    "q misaligned": (E.MisalignedOperandError, lambda t, a: {"q": _misaligned(t, a["q"])}),
    "k misaligned": (E.MisalignedOperandError, lambda t, a: {"k": _misaligned(t, a["k"])}),
    "y misaligned": (E.MisalignedOperandError, lambda t, a: {"y": _misaligned(t, a["y"])}),
    "scratch misaligned": (
        E.MisalignedOperandError,
        lambda t, a: {"kv_scratch_b": _misaligned(t, a["kv_scratch_b"])},
    ),
    "q: odd row stride": (E.MisalignedOperandError, lambda t, a: {"q": _odd_row_stride(t, a["q"])}),
    "k not dense": (E.InvalidProblemError, lambda t, a: {"k": _with_gaps(t, a["k"])}),
    "k without v": (E.InvalidProblemError, lambda t, a: {"v": None}),
    "v without k": (E.InvalidProblemError, lambda t, a: {"k": None}),
    "no scratch_a": (
        E.InvalidProblemError,
        lambda t, a: {"kv_scratch_a": None, "k": None, "v": None},
    ),
    "no scratch_b": (E.InvalidProblemError, lambda t, a: {"kv_scratch_b": None}),
    "no accumulator": (E.InvalidProblemError, lambda t, a: {"accumulator_scratch": None}),
    "scratch_a too short": (
        E.BufferTooSmallError,
        lambda t, a: {"kv_scratch_a": a["kv_scratch_a"][:-8], "k": None, "v": None},
    ),
    "scratch_b too short": (
        E.BufferTooSmallError,
        lambda t, a: {"kv_scratch_b": a["kv_scratch_b"][:-8]},
    ),
    "scratch of another dtype": (
        E.InvalidProblemError,
        lambda t, a: {"kv_scratch_b": a["kv_scratch_b"].float()},
    ),
    "accumulator too short": (
        E.WorkspaceTooSmallError,
        lambda t, a: {"accumulator_scratch": a["accumulator_scratch"][:4096]},
    ),
    "y is q": (E.InvalidProblemError, lambda t, a: {"y": a["q"]}),
    "y is in the scratch": (
        E.InvalidProblemError,
        lambda t, a: {"y": a["kv_scratch_b"][: B * H * Q * D].view(B, H, Q, D)},
    ),
    "lse overlaps y": (
        E.InvalidProblemError,
        lambda t, a: {"lse": a["y"].view(t.float32).view(-1)[: B * H * Q].view(B, H, Q)},
    ),
    "the two scratches are one": (
        E.InvalidProblemError,
        lambda t, a: {"kv_scratch_b": a["kv_scratch_a"]},
    ),
    "accumulator overlaps k": (
        E.InvalidProblemError,
        lambda t, a: {
            "k": a["accumulator_scratch"].view(t.bfloat16)[: B * HKV * K * D].view(B, HKV, K, D)
        },
    ),
    "lse: q's own memory": (
        E.InvalidProblemError,
        lambda t, a: {"lse": a["q"].view(t.float32).view(-1)[: B * H * Q].view(B, H, Q)},
    ),
}


@pytest.fixture(scope="module")
def ready(torch):
    """A stream, a plan and a ring."""
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.RingAttentionDescriptor(
        B, H, Q, K, D, is_causal=True, element=bk.ElementKind.BF16, num_kv_heads=HKV
    )
    plan = bk.RingAttentionPlan.select(stream, desc, preference("sm80", "bf16"))
    return stream, plan, bk.LocalCommunicator.ring(RANKS, device=0, timeout=5.0)


def test_the_good_arguments_are_good(torch, ready):
    _, plan, _ = ready
    plan.can_implement(bk.RingAttentionArgs(**_good(torch)), world_size=RANKS)


@pytest.mark.parametrize("name", BAD)
def test_bad_operand(torch, ready, name):
    stream, plan, ring = ready
    error, mutate = BAD[name]
    good = _good(torch)
    bad = mutate(torch, good)
    arguments = {**good, **bad}
    watched = [x for x in (*good.values(), *bad.values()) if x is not None]
    before = [x.clone() for x in good.values()]
    del bad

    def refused(call):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        # The message names an argument, and no traceback keeps the operands alive.
        assert any(argument in str(caught.value) for argument in arguments)

    def attempt():
        refused(lambda: plan.can_implement(bk.RingAttentionArgs(**arguments), world_size=RANKS))
        refused(lambda: plan.run(stream, ring.ranks[0], bk.RingAttentionArgs(**arguments)))

    attempt()
    torch.cuda.synchronize()
    gc.collect()  # frees the reference cycles of earlier tests
    references = [sys.getrefcount(x) for x in watched]
    allocated = torch.cuda.memory_allocated()
    for _ in range(3):
        attempt()
    gc.collect()
    assert [sys.getrefcount(x) for x in watched] == references
    assert torch.cuda.memory_allocated() == allocated
    for x, old in zip(good.values(), before, strict=True):
        assert torch.equal(x, old)


def test_a_refused_call_leaves_the_ring_usable(torch, ready):
    stream, plan, ring = ready
    bad = _good(torch) | {"q": None}
    with pytest.raises(E.InvalidProblemError):
        plan.run(stream, ring.ranks[0], bk.RingAttentionArgs(**bad))
    args = [bk.RingAttentionArgs(**_good(torch)) for _ in range(RANKS)]
    ring.run_all(stream, [plan] * RANKS, args)
    torch.cuda.synchronize()
