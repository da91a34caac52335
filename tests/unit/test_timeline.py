"""Timelines of rings on the host: what is recorded, and what is refused."""

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels import ElementKind, InvalidProblemError, RingTimeline

ROWS, HEADS, DIM = 96, 2, 32


class HostRing:
    def __init__(self, ranks, *, is_causal=False, layout="contiguous"):
        layout = bk.SequenceLayout.parse(layout)
        desc = bk.RingAttentionDescriptor(
            1, HEADS, ROWS, ROWS, DIM, is_causal=is_causal, element=ElementKind.F32,
            sequence_layout=layout,
        )  # fmt: skip
        self.stream = bk.Stream.host()
        self.plan = bk.RingAttentionPlan.select(self.stream, desc)
        self.ring = bk.LocalCommunicator.ring(ranks)
        random = np.random.default_rng(0)
        self.arrays = []
        for _ in range(ranks):
            q, k, v = random.standard_normal((3, 1, HEADS, ROWS, DIM), np.float32)
            scratch = np.empty((2, self.plan.kv_scratch_elements), np.float32)
            state = np.empty(self.plan.accumulator_scratch_bytes, np.uint8)
            y = np.empty_like(q)
            args = bk.RingAttentionArgs(
                q=q, k=k, v=v, y=y, kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
                accumulator_scratch=state,
            )  # fmt: skip
            self.arrays.append((y, args))
        self.args = [args for _, args in self.arrays]

    def run(self, timeline=None):
        self.ring.run_all(self.stream, self.plan, self.args, timeline=timeline)
        return [y.copy() for y, _ in self.arrays]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_step_of_every_rank_is_recorded(ranks):
    ring = HostRing(ranks)
    plain = ring.run()
    timelines = [RingTimeline() for _ in range(ranks)]
    for _ in range(2):  # the events are used again
        timed = ring.run(timelines)
        assert all(np.array_equal(a, b) for a, b in zip(plain, timed, strict=True))
        for rank, timeline in enumerate(timelines):
            assert (timeline.rank, timeline.world_size) == (rank, ranks)
            steps = timeline.steps
            assert [step.step for step in steps] == list(range(ranks))
            assert all(step.compute > 0 for step in steps)
            assert all(step.exchange > 0 for step in steps[:-1])
            assert steps[-1].exchange == 0 and steps[0].exposed == 0
            # The ranks take turns on one thread, so a rank's own parts are not all of its time.
            assert timeline.compute + timeline.exposed <= timeline.total * 1.001
    # Half a millisecond in all: a machine with other work takes the thread away in some runs.
    for _ in range(20):
        if all(timeline.exposed < timeline.total / 10 for timeline in timelines):
            break
        ring.run(timelines)
    else:
        raise AssertionError([(t.exposed, t.total) for t in timelines])


def test_steps_that_the_mask_empties_compute_nothing():
    ring = HostRing(4, is_causal=True)
    timelines = [RingTimeline() for _ in range(4)]
    ring.run(timelines)
    live = [[step.compute for step in timeline.steps] for timeline in timelines]
    # Rank 0 sees its own chunk alone, rank 3 all of them.
    assert max(live[0][1:]) < live[0][0] / 2
    assert min(live[3]) > max(live[0][1:])


def test_one_rank_on_its_own():
    ring = HostRing(1)
    timeline = RingTimeline()
    ring.plan.run(ring.stream, ring.ring[0], ring.args[0], timeline=timeline)
    (step,) = timeline.steps
    assert step.compute > 0 and step.exchange == step.exposed == 0
    assert repr(timeline) == "RingTimeline(rank=0, world_size=1)"
    # A run without a timeline leaves the last one's result alone.
    before = timeline.steps
    ring.run()
    assert timeline.steps == before


@pytest.mark.parametrize("ranks", [1, 3])
def test_spans_are_the_steps_with_their_places_in_time(ranks):
    ring = HostRing(ranks, is_causal=True)
    timelines = [RingTimeline() for _ in range(ranks)]
    ring.run(timelines)
    ended = 0.0
    lanes = [timeline.spans(timelines[0]) for timeline in timelines]
    for timeline, spans in zip(timelines, lanes, strict=True):
        names = ["compute"] * ranks + ["exchange"] * (ranks - 1) + ["exposed"] * (ranks - 1)
        assert sorted(span.name for span in spans) == names
        for step in timeline.steps:
            for name in ("compute", "exchange", "exposed"):
                times = [s.end - s.begin for s in spans if (s.step, s.name) == (step.step, name)]
                assert sum(times) == pytest.approx(getattr(step, name), abs=1e-4)
        own = timeline.spans()
        assert [span[:2] for span in own] == [span[:2] for span in spans]
        assert {round(a.begin - b.begin, 3) for a, b in zip(spans, own, strict=True)} == {
            round(spans[0].begin - own[0].begin, 3)
        }
    # One thread: nobody computes while another does, rank after rank and step after step.
    work = [[s for s in spans if s.name == "compute"] for spans in lanes]
    for step in range(ranks):
        for rank in range(ranks):
            assert work[rank][step].begin >= ended - 1e-4
            ended = work[rank][step].end
    # A chunk is on its way only once the one before has come, and computed on once it has.
    for spans in lanes:
        exchanges = [s for s in spans if s.name == "exchange"]
        for step, exchange in enumerate(exchanges):
            begin = next(s.begin for s in spans if s[:2] == (step + 1, "compute"))
            assert exchange.end <= begin + 1e-4
            assert step == 0 or exchange.begin >= exchanges[step - 1].end - 1e-4


def test_spans_count_from_a_timeline_that_was_recorded():
    ring = HostRing(2)
    first, second = RingTimeline(), RingTimeline()
    with pytest.raises(InvalidProblemError, match="nothing was recorded"):
        first.spans()
    ring.run([first, None])
    with pytest.raises(InvalidProblemError, match="nothing was recorded"):
        first.spans(second)
    with pytest.raises(InvalidProblemError, match="got str, must be a RingTimeline"):
        first.spans("start")


def test_a_timeline_follows_the_size_of_the_ring():
    timeline = RingTimeline()
    for ranks in (2, 4, 1):
        ring = HostRing(ranks)
        others = [None] * (ranks - 1)
        ring.run([timeline, *others])
        assert len(timeline.steps) == ranks


def test_what_is_refused():
    ring = HostRing(2)
    with pytest.raises(InvalidProblemError, match="nothing was recorded"):
        RingTimeline().steps  # noqa: B018
    with pytest.raises(InvalidProblemError, match="nothing was recorded"):
        RingTimeline().total  # noqa: B018
    for wrong in (RingTimeline(), [RingTimeline()]):
        with pytest.raises(InvalidProblemError, match="timeline"):
            ring.run(wrong)
    with pytest.raises(InvalidProblemError, match="got str, must be a RingTimeline"):
        ring.run(["yes", None])
    with pytest.raises(InvalidProblemError, match="got str, must be a RingTimeline"):
        ring.plan.run(ring.stream, ring.ring[0], ring.args[0], timeline="yes")
    ring.run()  # and the ring is as good as before
