"""RingAttentionBackwardPlan on local rings of the host: gradients, their bits, failures."""

import itertools
import threading

import numpy as np
import pytest
from helpers.gradients import HOST, NAMES, draw, errors, host_gradients
from helpers.queues import Queues, run_over_queues
from helpers.ring_gradients import HostGradients, by_hand
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels.testing import (
    NUMPY_DTYPES,
    assert_gradients,
    attention,
    attention_backward,
    max_score,
    rms_over_rounding,
)

LAYOUTS = ("contiguous", "zigzag", "striped")

problems = {
    "seed": st.integers(0, 2**32 - 1),
    "ranks": st.integers(1, 8),
    "layout": st.sampled_from(LAYOUTS),
    "is_causal": st.booleans(),
    "batch": st.integers(1, 2),
    "kv_heads": st.integers(1, 2),
    "group": st.sampled_from([1, 1, 2, 4]),
    "rows": st.integers(0, 20),
    "keys": st.integers(0, 20),
    "head_dim": st.sampled_from([1, 3, 8, 16, 33, 64]),
    "dlse": st.booleans(),
}


def _with_rounded_y(dtype, x, y, **options):
    """dlse, and the rounding error of delta, which can exceed the gradient of a short row."""
    if dtype not in ("f16", "bf16"):
        return x.dlse
    exact_y, _ = attention(x.q, x.k, x.v, **options)
    lost = ((exact_y - y.astype(np.float64)) * x.dy.astype(np.float64)).sum(axis=-1)
    return lost if x.dlse is None else x.dlse + lost


def run_and_check(dtype, scale, **p):
    x = draw(
        dtype, p["seed"], batch=p["batch"], heads=p["kv_heads"] * p["group"],
        kv_heads=p["kv_heads"], query_len=p["rows"] * p["ranks"], key_len=p["keys"] * p["ranks"],
        head_dim=p["head_dim"], dlse=p["dlse"],
    )  # fmt: skip
    options = {"scale": scale, "is_causal": p["is_causal"]}
    y, lse, *got = bk.run_local_ring(
        x.q, x.k, x.v, p["ranks"], dy=x.dy, dlse=x.dlse, sequence_layout=p["layout"], **options
    )
    same_y, same_lse = bk.run_local_ring(
        x.q, x.k, x.v, p["ranks"], sequence_layout=p["layout"], **options
    )
    assert np.array_equal(y, same_y) and np.array_equal(lse, same_lse)
    for gradient, operand in zip(got, x[:3], strict=True):
        assert gradient.dtype == operand.dtype and gradient.shape == operand.shape
    exact = attention_backward(*x[:4], dlse=_with_rounded_y(dtype, x, y, **options), **options)
    score = max_score(x.q, x.k, scale)
    norms = [float(np.linalg.norm(a.astype(np.float64), axis=-1).max(initial=0)) for a in x[1:4]]
    summands = max(np.prod(norms), norms[0]) * (1 if x.dlse is None else 1 + np.abs(x.dlse).max(
        initial=0))  # fmt: skip
    assert_gradients(
        "host", dtype, got, exact, score=score if score > 4 else 0.0, summands=summands,
        peaked=score > 20 or p["head_dim"] < 8,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(scale=st.sampled_from([-0.1, 0.0, None]), **problems)
def test_f64(scale, **problem):
    run_and_check("f64", scale, **problem)


@settings(max_examples=50, deadline=None)
@given(**problems)
def test_f32(**problem):
    run_and_check("f32", None, **problem)


@settings(max_examples=40, deadline=None)
@given(dtype=st.sampled_from(["f16", "bf16"]), **problems)
def test_16_bit(dtype, **problem):
    run_and_check(dtype, None, **problem)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bit_error_is_that_of_one_rank_at_every_world_size(dtype, is_causal):
    x = draw(dtype, 5, heads=4, kv_heads=2, query_len=256, head_dim=64)
    exact = attention_backward(*x[:4], is_causal=is_causal)
    ratios = {}
    for ranks in (1, 2, 4, 8):
        for layout in LAYOUTS if ranks > 1 else LAYOUTS[:1]:
            got = HostGradients(x, ranks, layout=layout, is_causal=is_causal).run()
            ratios[ranks, layout] = [
                rms_over_rounding(g, e, dtype) for g, e in zip(got, exact, strict=True)
            ]
    alone = ratios.pop((1, "contiguous"))
    for found in ratios.values():
        for one, ratio in zip(alone, found, strict=True):
            assert ratio <= 1.02 * one, ratios


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "f32", "f64"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_order_of_sums_is_the_schedules(dtype, ranks, wide):
    """Equal bits to steps by hand with shares added in the same order, the rank's own last."""
    for layout, is_causal in (("contiguous", True), ("zigzag", True), ("striped", False)):
        x = draw(dtype, ranks, heads=4, kv_heads=2, query_len=14 * ranks, key_len=9 * ranks,
                 head_dim=24, dlse=True)  # fmt: skip
        ring = HostGradients(x, ranks, layout=layout, is_causal=is_causal, wide=wide)
        ring.run()
        for rank, expected in zip(ring.ranks, by_hand(ring), strict=True):
            for name, got, sure in zip(NAMES, rank.gradients, expected, strict=True):
                assert got.dtype == sure.dtype and np.array_equal(got, sure), (name, layout)


@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_one_rank_gives_the_bits_of_flash_sdpa(dtype):
    x = draw(dtype, 1, heads=4, kv_heads=2, query_len=50, head_dim=16, dlse=True)
    alone = HostGradients(x, 1, is_causal=True).run()
    for got, sure in zip(alone, host_gradients(x, is_causal=True), strict=True):
        assert np.array_equal(got, sure)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_runs_on_threads_together_and_again_give_the_same_bits(ranks):
    """With any earlier contents of outputs and scratch, and also if a rank is late."""
    x = draw("bf16", 2, heads=2, query_len=24 * ranks, head_dim=16)
    ring = HostGradients(x, ranks, layout="zigzag", is_causal=True)
    first = [g.copy() for g in ring.run()]
    for late in (None, 0, ranks - 1):
        ring.poison()
        on_threads(ring, late)
        assert all(map(np.array_equal, first, ring.gathered()))
        ring.poison()
        assert all(map(np.array_equal, first, ring.run()))


def on_threads(ring, late=None):
    failures = []
    start = threading.Event()

    def drive(rank):
        if rank == late:
            start.wait(0.1)
        try:
            ring.plan.run(HOST, ring.ring[rank], ring.args[rank])
        except bk.BaracudaError as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(r,)) for r in range(ring.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


def test_keys_that_no_row_sees_and_rows_that_see_none():
    """Contiguous shards with fewer rows than keys: no row sees the last ranks' keys."""
    x = draw("f32", 3, query_len=12, key_len=40, head_dim=8)
    x.k[:, :, 13:] = x.v[:, :, 13:] = np.nan  # whatever is there
    dq, dk, dv = HostGradients(x, 4, is_causal=True).run()
    assert np.isfinite(dq).all() and (dv[:, :, :12] != 0).any()
    assert (dk[:, :, 12:] == 0).all() and (dv[:, :, 12:] == 0).all()
    # Striped rows without a key of their own or before them: none is live, one launch writes zeros.
    for shape in ({"query_len": 8, "key_len": 0}, {"query_len": 0, "key_len": 8}):
        x = draw("f32", 4, head_dim=8, **shape)
        for ranks in (1, 4):
            for gradient in HostGradients(x, ranks, layout="striped").run():
                assert (gradient == 0).all()


def test_nan_reaches_only_what_sees_it():
    x = draw("f32", 5, query_len=32, head_dim=8)
    x.dy[0, 0, 17, 3] = np.nan
    exact = attention_backward(*x[:4], is_causal=True)
    for layout in LAYOUTS:
        got = HostGradients(x, 4, layout=layout, is_causal=True).run()
        for one, truth in zip(got, exact, strict=True):
            assert np.array_equal(np.isfinite(one), np.isfinite(truth))


def test_strides_of_the_rows_operands_and_of_outputs():
    ranks, shape = 3, {"batch": 2, "heads": 4, "kv_heads": 2, "query_len": 30, "head_dim": 8}
    x = draw("bf16", 6, dlse=True, **shape)
    plain = HostGradients(x, ranks, is_causal=True)
    expected = plain.run()

    def turned(a):
        if a is None or a.ndim == 1:
            return a
        order = (0, 2, 1, *range(3, a.ndim))
        return np.ascontiguousarray(a.transpose(order)).transpose(order)

    other = HostGradients(x, ranks, is_causal=True)
    for rank in other.ranks:
        for name in ("q", "k", "v", "dy", "lse", "dlse", "y", "dq", "dk", "dv"):
            rank.held[name] = turned(rank.held[name])
        rank.dq, rank.dk, rank.dv = (rank.held[name] for name in NAMES)
    other.args = [bk.RingAttentionBackwardArgs(**rank.held) for rank in other.ranks]
    assert not other.ranks[0].dk.flags.c_contiguous
    assert all(map(np.array_equal, expected, other.run()))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@settings(max_examples=60, deadline=None)
@given(**problems | {"ranks": st.integers(2, 8), "group": st.sampled_from([2, 4, 8])})
def test_the_least_scratch_gives_the_same_bits(dtype, **p):
    """dq holds scratch until it is written: on ranks whose last live step is not the last step, too."""
    x = draw(
        dtype, p["seed"], batch=p["batch"], heads=p["kv_heads"] * p["group"],
        kv_heads=p["kv_heads"], query_len=p["rows"] * p["ranks"], key_len=p["keys"] * p["ranks"],
        head_dim=p["head_dim"], dlse=p["dlse"],
    )  # fmt: skip
    options = {"layout": p["layout"], "is_causal": p["is_causal"]}
    one, other = (HostGradients(x, p["ranks"], **options) for _ in range(2))
    assume(not one.plan.needs_kv_scratch_b)
    expected = one.run()
    for with_b in (True, False):
        other.save_memory(with_kv_scratch_b=with_b)
        other.poison()
        for name, mine, its in zip(NAMES, expected, other.run(), strict=True):
            np.testing.assert_array_equal(mine.view(np.uint8), its.view(np.uint8), name)
        assert not any(rank.overruns() for rank in other.ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_over_a_transport_with_one_message_a_chunk_and_one_a_sum(ranks):
    x = draw("bf16", 8, heads=2, kv_heads=1, query_len=12 * ranks, head_dim=8)
    ring = HostGradients(x, ranks, layout="zigzag", is_causal=True)
    expected = [g.copy() for g in ring.run()]
    ring.poison()
    ends, raised = run_over_queues(ring.plan, ring.args)
    assert not raised
    assert all(map(np.array_equal, expected, ring.gathered()))
    piece, sums = 12 * 8 * 2, 2 * 12 * 8 * 4
    for rank, end in enumerate(ends):
        sent = [call for call in end.calls if call[0] == "send"]
        assert {peer for _, peer, _ in sent} == {(rank + 1) % ranks}
        sizes = [nbytes for *_, nbytes in sent]
        assert sizes.count(piece) == 2 and sizes.count(2 * piece) == ranks - 2
        assert sizes.count(sums) == ranks - 1 and len(sizes) == 2 * ranks - 1


def test_a_rank_that_fails_ends_the_others():
    """The exception of a broken transport is raised, and its group is closed."""

    class Broken(Queues):
        def send(self, buffer, peer, stream):
            if self.rank == 1 and buffer.nbytes == 2 * 12 * 8 * 4:  # a sum
                raise OSError("cable cut")
            super().send(buffer, peer, stream)

        timeout = 0.5

    x = draw("bf16", 8, heads=2, kv_heads=1, query_len=36, head_dim=8)
    ring = HostGradients(x, 3)
    ends, raised = run_over_queues(ring.plan, ring.args, Broken)
    assert any(isinstance(error, OSError) for error in raised) and len(raised) > 1
    assert ends[1].calls.count("start") == ends[1].calls.count("end")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_timelines_tell_of_both_exchanges_and_of_adding(ranks):
    x = draw("f32", 9, heads=2, query_len=64 * ranks, head_dim=32)
    ring = HostGradients(x, ranks)
    timelines = [bk.RingTimeline() for _ in range(ranks)]
    expected = [g.copy() for g in ring.run()]
    for _ in range(2):
        assert all(map(np.array_equal, expected, ring.run(timeline=timelines)))
    for timeline in timelines:
        steps = timeline.steps
        assert [s.step for s in steps] == list(range(ranks))
        assert all(s.compute > 0 for s in steps)
        assert all((s.exchange > 0) == (ranks > 1) for s in steps), "the last brings sums home"
        spans = timeline.spans()
        # Shares are added to what came from the third step on, and at home; beside the last
        # exchange dq is written, where a kernel does that apart.
        more = max(ranks - 2, 0) + 2 * (ranks > 1)
        assert sum(s.name == "compute" for s in spans) == ranks + more
        rounds = 0 if ranks == 1 else 2 if ranks == 2 else ranks + 1
        assert sum(s.name == "exchange" for s in spans) == rounds
        assert max(s.end for s in spans) <= timeline.total + spans[0].begin + 0.001
        assert timeline.compute + timeline.exposed <= timeline.total * 1.001


def test_run_local_ring_counts_the_steps_of_both_directions():
    x = draw("f32", 10, query_len=32, head_dim=8, dlse=True)
    seen = []
    found = bk.run_local_ring(
        *x[:3], 4, dy=x.dy, dlse=x.dlse, progress=lambda *done: seen.append(done)
    )
    assert seen[0] == (0, 32) and seen[-1] == (32, 32)
    assert all(a <= b for a, b in itertools.pairwise(seen))
    exact = attention_backward(*x[:4], dlse=x.dlse)
    assert max(errors(found[2:], exact).values()) < 1e-6


def test_run_local_ring_stops_in_the_backward_too():
    x = draw("f32", 10, query_len=64, head_dim=8)
    backward = False

    def progress(done, total):
        nonlocal backward
        backward = done > total / 2
        if backward and done < total:
            raise ArithmeticError("enough")

    slow = draw("f32", 10, heads=8, query_len=4096, head_dim=64)
    with pytest.raises(ArithmeticError, match="enough"):
        bk.run_local_ring(*slow[:3], 2, dy=slow.dy, progress=progress)
    assert backward
    assert np.isfinite(bk.run_local_ring(*x[:3], 2, dy=x.dy)[2]).all()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"dy": None}, "dlse: got an array without dy"),
        ({"dy": np.zeros((1, 2, 8, 4), np.float64)}, "dy: got ndarray of float64, must be"),
        ({"dy": np.zeros((1, 2, 4, 4), np.float32)}, "dy: got shape"),
        ({"dlse": np.zeros((1, 2, 8), np.float64)}, "dlse: got ndarray of float64"),
        ({"dlse": np.zeros((1, 2, 8, 1), np.float32)}, "dlse: got shape"),
        ({"dy": 3}, "dy"),
    ],
)
def test_run_local_ring_refuses_gradients_that_do_not_fit(changed, text):
    x = np.zeros((1, 2, 8, 4), np.float32)
    given = {"dy": x, "dlse": x[..., 0], **changed}
    with pytest.raises(bk.InvalidProblemError, match=text):
        bk.run_local_ring(x, x, x, 2, **given)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    x = draw("f64", 11, query_len=24, head_dim=16)
    kind = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}[dtype]
    tensors = [torch.from_numpy(a).to(getattr(torch, kind)) for a in x[:4]]
    q, k, v, dy = tensors
    _, _, *got = bk.run_local_ring(q, k, v, 3, dy=dy, is_causal=True, sequence_layout="zigzag")
    assert all(isinstance(g, torch.Tensor) and g.dtype == q.dtype for g in got)
    exact = attention_backward(*(t.double().numpy() for t in tensors), is_causal=True)
    got = [g.double().numpy().astype(NUMPY_DTYPES[dtype]) for g in got]
    assert_gradients("host", dtype, got, exact)
    with pytest.raises(bk.UnsupportedError, match="dy: got a tensor that requires grad"):
        bk.run_local_ring(q, k, v, 3, dy=dy.requires_grad_())
