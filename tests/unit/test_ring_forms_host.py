"""A ring's forward on the host in every form that an engine may choose: the same bits, and right."""

import numpy as np
import pytest
from helpers.gradients import HOST, accumulator
from helpers.ring_gradients import ring_descriptor

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_close, attention, numpy_qkv


def _behind_rows(x):
    return x.swapaxes(1, 2).copy().swapaxes(1, 2)


class Forms:
    """The ranks' operands, and each form's y and lse of the whole sequence."""

    def __init__(self, dtype, ranks, layout, is_causal):
        self.layout = layout
        self.whole = numpy_qkv(
            "normal", dtype, ranks, heads=4, kv_heads=2, query_len=13 * ranks, head_dim=24
        )
        cut = [bk.shard(x, ranks, sequence_layout=layout) for x in self.whole]
        self.shards = [[np.ascontiguousarray(x) for x in of] for of in zip(*cut, strict=True)]
        desc = ring_descriptor(*self.shards[0][:2], layout, is_causal=is_causal)
        self.plan = bk.RingAttentionPlan.select(desc, HOST)
        self.wide = accumulator(dtype)

    def outputs(self):
        q = self.shards[0][0]
        return {"y": np.full_like(q, np.nan), "lse": np.full(q.shape[:3], np.nan, self.wide)}

    def state(self):
        return np.full(self.plan.accumulator_scratch_bytes, 0xFF, np.uint8)

    def gathered(self, written):
        return [
            bk.unshard([one[name] for one in written], sequence_layout=self.layout)
            for name in ("y", "lse")
        ]

    def run(self, *forms):
        """All ranks together, each in its form, or all in one: K and V "staged", "in place" or there
        as "bytes"; q, k and v as "views", heads behind rows; or v alone, "v behind rows"."""
        written, args = [self.outputs() for _ in self.shards], []
        forms = forms * len(self.shards) if len(forms) == 1 else forms
        for (q, k, v), outputs, form in zip(self.shards, written, forms, strict=True):
            if form == "views":
                q, k, v = map(_behind_rows, (q, k, v))
            elif form == "v behind rows":
                v = _behind_rows(v)
            scratch = np.full((2, self.plan.kv_scratch_elements), np.nan, q.dtype)
            given = {"k": k, "v": v}
            if form == "staged":
                scratch[0], given = np.concatenate([k.ravel(), v.ravel()]), {}
            elif form == "bytes":
                given = {name: x.view(np.uint8).reshape(-1) for name, x in given.items()}
            args.append(bk.RingAttentionArgs(
                q=q, **given, **outputs, kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
                accumulator_scratch=self.state(),
            ))  # fmt: skip
        bk.LocalCommunicator.ring(len(args)).run_all(HOST, self.plan, args)
        return self.gathered(written)

    def step(self, *, follows):
        """One by one on each rank's state."""
        ranks, written = len(self.shards), []
        for rank, (q, _, _) in enumerate(self.shards):
            outputs, state = self.outputs(), self.state()
            for number in range(ranks):
                origin = (rank - number) % ranks
                _, k, v = self.shards[origin]
                self.plan.step(
                    HOST, q=q, k=k, v=v, **outputs, accumulator_scratch=state, rank=rank,
                    origin=origin, world_size=ranks, first=number == 0, last=number == ranks - 1,
                    follows=follows and number > 0,
                )  # fmt: skip
            written.append(outputs)
        return self.gathered(written)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_every_form_gives_the_same_bits(dtype, is_causal, layout):
    for ranks in (1, 2, 3, 8):
        forms = Forms(dtype, ranks, layout, is_causal)
        y, lse = forms.run("in place")
        exact_y, exact_lse = attention(*forms.whole, is_causal=is_causal)
        assert_close("host", dtype, y, exact_y, lse, exact_lse)
        others = {form: forms.run(form) for form in ("staged", "views")}
        others |= {f"steps, {follows}": forms.step(follows=follows) for follows in (False, True)}
        for name, other in others.items():
            assert np.array_equal(y, other[0]) and np.array_equal(lse, other[1]), (name, ranks)


def test_ranks_whose_chunks_lie_differently_are_refused():
    """A received chunk is read in the order of the rank's own."""
    forms = Forms("f32", 3, "contiguous", False)
    y, lse = forms.run("in place")
    for alike in (["staged", "in place", "bytes"], ["bytes", "bytes", "staged"]):
        assert all(map(np.array_equal, forms.run(*alike), (y, lse)))
    same, _ = forms.run("v behind rows")
    assert np.array_equal(same, y)
    for other in ("in place", "staged", "bytes"):
        with pytest.raises(bk.InvalidProblemError, match=(
                "^args: rank 2: order of v's dimensions: got SHD, must be HSD as on rank 0")):
            forms.run(other, other, "v behind rows")


def test_gradients_of_ranks_whose_chunks_lie_differently_are_refused():
    def z(*shape):
        return np.zeros(shape, np.float32)

    d = bk.RingAttentionDescriptor(1, 2, 4, 4, 8)
    plan = bk.RingAttentionBackwardPlan.select(d, HOST)
    dq, args = [z(1, 2, 4, 8) + 7 for _ in range(2)], []
    for rank in range(2):
        q, k, v, y, dy, dk, dv = (z(1, 2, 4, 8) for _ in range(7))
        if rank == 1:
            k = z(1, 4, 2, 8).swapaxes(1, 2)
        args.append(bk.RingAttentionBackwardArgs(
            q=q, k=k, v=v, y=y, dy=dy, lse=z(1, 2, 4), dq=dq[rank], dk=dk, dv=dv,
            scratch=z(plan.scratch_bytes // 4), kv_scratch_a=z(plan.kv_scratch_elements),
            kv_gradient_scratch=z(plan.kv_gradient_scratch_bytes // 4)))
    with pytest.raises(bk.InvalidProblemError, match="rank 1: order of k's dimensions: got SHD"):
        bk.LocalCommunicator.ring(2).run_all(HOST, plan, args)
    assert all((x == 7).all() for x in dq)
