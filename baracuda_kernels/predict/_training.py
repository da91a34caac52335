"""The model of a ring's backward pass, and of a training step: a forward, then a backward.

The model assumes lock step, as in the forward. K and V travel during the steps. The sums of dK and
dV travel one exchange later, in the accumulator's type. The last exchange returns a rank's sum to
it, after all steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from baracuda_kernels._arguments import integer, layout_of
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.predict._model import (
    Machine,
    RingForecast,
    RingProblem,
    StepForecast,
    forecast,
    rank_memory,
)
from baracuda_kernels.predict._pairs import visible_pairs
from baracuda_kernels.predict._rates import ComputeRates

if TYPE_CHECKING:
    from baracuda_kernels import ArchSku, PlanPreference
    from baracuda_kernels.registry import Architecture

# Flops of a visible pair over those of the forward: five matrix products instead of two.
BACKWARD_FLOPS = 2.5


def gradient_bytes_per_hop(problem: RingProblem) -> int:
    """Bytes of the sums of dK and dV that a rank sends in one exchange, 2·B·Hkv·K·D·4 (f64: ·8)."""
    return problem.kv_scratch_elements * problem.accumulator_itemsize


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one rank's operands and scratch in a backward, all in the caller's memory.

    `kept` are q, k, v, y and lse of the forward. `gradients` are dy, dq, dk and dv. `scratch_a` and
    `scratch_b` receive K and V. `sums` are the four buffers of the travelling dK and dV. `scratch`
    is what the kernel asks for: the accumulator of dQ, and numbers for each row.
    """

    kept: int
    gradients: int
    scratch_a: int
    scratch_b: int
    sums: int
    scratch: int

    @property
    def total(self) -> int:
        """The sum of all fields."""
        return sum(dataclasses.astuple(self))


def backward_scratch(
    problem: RingProblem,
    arch: Architecture | ArchSku | str | int | tuple[int, int] | None = "sm_90",
    preference: PlanPreference | None = None,
) -> int:
    """Bytes of `scratch` that the kernel of a rank's backward asks for: its plan's `scratch_bytes`.

    Kernels differ: some round the rows up to their tiles, and a fixed order of sums takes more.

    Parameters
    ----------
    problem : RingProblem
    arch : ArchSku, str, int or tuple, default "sm_90"
        As in :func:`baracuda_kernels.registry.explain`. For a GPU it needs a build with the CUDA
        kernels, but no GPU.
    preference : PlanPreference, optional

    Raises
    ------
    InvalidProblemError
        If the architecture is unknown.
    UnsupportedError
        If no kernel serves the problem there.
    """
    from baracuda_kernels import registry
    from baracuda_kernels.ops.attention import _families

    descriptor = problem.descriptor
    family = registry.explain(descriptor, arch, preference, "BACKWARD").require().entry
    return _families.backward_scratch_bytes(family, descriptor, True)


def training_memory(problem: RingProblem, scratch: int | None = None) -> TrainingMemory:
    """The memory of a rank during the `run` of a backward, with K and V in place.

    The forward's accumulator is free then, or is used as part of the scratch. All four buffers of
    `sums` are counted, also where a plan's `needs_kv_scratch_b` is False and three are enough.

    Parameters
    ----------
    problem : RingProblem
    scratch : int, optional
        Bytes that the kernel asks for, from `backward_scratch`. By default those of the families
        `host` and `simt`, B·H·L·(D+2)·4 (f64: ·8).

    Raises
    ------
    InvalidProblemError
        If `scratch` is no integer from 0 on.
    """
    forward = rank_memory(problem, in_place=True)
    travels = problem.ranks > 1
    return TrainingMemory(
        kept=forward.q + forward.y + forward.lse + forward.kv,
        gradients=forward.y + forward.q + forward.kv,
        scratch_a=forward.scratch_a,
        scratch_b=forward.scratch_b,
        sums=4 * gradient_bytes_per_hop(problem) if travels else 0,
        scratch=problem.state_bytes if scratch is None else integer("scratch", scratch, least=0),
    )


def backward_exchange_seconds(problem: RingProblem, machine: Machine) -> np.ndarray:
    """Seconds of each exchange of a backward, without concurrent compute.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine

    Returns
    -------
    numpy.ndarray
        float64, shape ``[P + 1]``. Exchange s is concurrent with step s; the last one comes after
        all steps. 0 if nothing is sent.
    """
    ranks = problem.ranks
    number = np.arange(ranks + 1)
    chunk = np.where(number < ranks - 1, problem.bytes_per_hop, 0)
    # The share of the first step stays on its rank.
    sums = np.where((number >= 2) & (ranks > 1), gradient_bytes_per_hop(problem), 0)
    sent = chunk + sums
    return np.where(sent > 0, machine.latency + sent / machine.link_bytes_per_second, 0.0)


def backward_compute_seconds(
    problem: RingProblem, machine: Machine, sequence_layout: SequenceLayout | str = "contiguous"
) -> np.ndarray:
    """Seconds that each rank computes in each step of a backward, and at its end.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
        With `backward_rates`.
    sequence_layout : SequenceLayout or str, default "contiguous"

    Returns
    -------
    numpy.ndarray
        float64, shape ``[P + 1, P]``: steps, ranks. The last step is the addition of the returned
        sums.

    Raises
    ------
    InvalidProblemError
        If the layout is unknown, or the machine has no `backward_rates`.
    """
    layout, rates = layout_of(sequence_layout), _rates(machine)
    ranks, chunk = problem.ranks, problem.chunk
    if ranks == 1:
        layout = SequenceLayout.CONTIGUOUS
    flops = BACKWARD_FLOPS * problem.flops_per_pair
    full_rate = flops / (rates.tflops(chunk) * 1e12)
    cut_rate = flops / (rates.tflops(chunk, causal=True) * 1e12)
    exchanges = backward_exchange_seconds(problem, machine)
    # A block computes a tile of keys, for all heads of a group.
    tiles = problem.batch * problem.hkv * -(-chunk // rates.tile_rows)
    # An addition reads a sum and a share, and writes the sum; the last one writes the operands'
    # type.
    per_byte = rates.state_seconds_per_byte(chunk)
    add = 3 * gradient_bytes_per_hop(problem) * per_byte
    home = (2 * gradient_bytes_per_hop(problem) + problem.bytes_per_hop) * per_byte
    rank = np.arange(ranks)
    seconds = np.zeros((ranks + 1, ranks))
    for step in range(ranks):
        pairs = visible_pairs(
            chunk, rank, (rank - step) % ranks, ranks, layout, causal=problem.causal
        )
        usable = machine.sms - (machine.margin if exchanges[step] > 0 else 0)
        share = min(max(tiles, 1), usable) / machine.sms
        seconds[step] = (pairs.full * full_rate + pairs.cut * cut_rate) / share
        if step >= 2:
            seconds[step] += add * (pairs.live_rows > 0)
    if ranks > 1:
        seconds[ranks] = home
    return seconds


def backward_forecast(
    problem: RingProblem, machine: Machine, sequence_layout: SequenceLayout | str = "contiguous"
) -> RingForecast:
    """Predict one backward of the ring.

    Its `steps` are those of the ring and, with more than one rank, two more: the exchange that
    returns the sums, without concurrent compute, and the addition after that exchange.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
        With `backward_rates`.
    sequence_layout : SequenceLayout or str, default "contiguous"

    Raises
    ------
    InvalidProblemError
        If the layout is unknown, or the machine has no `backward_rates`.
    """
    layout = layout_of(sequence_layout)
    alone = dataclasses.replace(problem, ranks=1)
    one_gpu = float(backward_compute_seconds(alone, machine)[0, 0])
    seconds = backward_compute_seconds(problem, machine, layout)
    exchanges = backward_exchange_seconds(problem, machine)
    steps = [
        StepForecast(float(row.max()), float(row.mean()), float(row.min()), float(exchange))
        for row, exchange in zip(seconds[:-1], exchanges[:-1], strict=True)
    ]
    if problem.ranks > 1:
        home = float(seconds[-1, 0])
        steps.append(StepForecast(0.0, 0.0, 0.0, float(exchanges[-1])))
        steps.append(StepForecast(home, home, home, 0.0))
    return RingForecast(problem, layout, tuple(steps), one_gpu, BACKWARD_FLOPS)


@dataclass(frozen=True)
class TrainingForecast:
    """The `forward` and the `backward` of one problem in one layout. Its figures are those of both
    together."""

    forward: RingForecast
    backward: RingForecast

    @property
    def problem(self) -> RingProblem:
        """The forward's."""
        return self.forward.problem

    @property
    def layout(self) -> SequenceLayout:
        """The forward's."""
        return self.forward.layout

    @property
    def steps(self) -> tuple[StepForecast, ...]:
        """The forward's, then the backward's."""
        return self.forward.steps + self.backward.steps

    @property
    def one_gpu(self) -> float:
        """Seconds of both on one such GPU."""
        return self.forward.one_gpu + self.backward.one_gpu

    @property
    def compute(self) -> float:
        """Seconds of compute on the critical path."""
        return self.forward.compute + self.backward.compute

    @property
    def exposed(self) -> float:
        """Seconds of communication that compute does not hide."""
        return self.forward.exposed + self.backward.exposed

    @property
    def seconds(self) -> float:
        """Seconds of both calls."""
        return self.forward.seconds + self.backward.seconds

    @property
    def balance(self) -> float:
        """Compute on the critical path over a rank's average; 1 is perfect."""
        return self.compute / sum(step.mean for step in self.steps)

    @property
    def efficiency(self) -> float:
        """Part of P ideal GPUs' speed."""
        return self.one_gpu / (self.problem.ranks * self.seconds)

    @property
    def tflops_per_gpu(self) -> float:
        """Visible flops a second and GPU, in TFLOPS."""
        work = sum(f.tflops_per_gpu * f.seconds for f in (self.forward, self.backward))
        return work / self.seconds

    @property
    def hidden(self) -> bool:
        """Whether compute hides every exchange but the last of the backward, which returns the
        sums."""
        return self.forward.hidden and self.backward.hidden

    def to_dict(self) -> dict[str, Any]:
        """Everything, by name; times in seconds."""
        return {
            "seconds": self.seconds,
            "compute_seconds": self.compute,
            "exposed_seconds": self.exposed,
            "efficiency": self.efficiency,
            "balance": self.balance,
            "tflops_per_gpu": self.tflops_per_gpu,
            "forward": self.forward.to_dict(),
            "backward": self.backward.to_dict(),
        }


def training_forecast(
    problem: RingProblem, machine: Machine, sequence_layout: SequenceLayout | str = "contiguous"
) -> TrainingForecast:
    """Predict a forward and a backward of the ring.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
        With `backward_rates`.
    sequence_layout : SequenceLayout or str, default "contiguous"

    Raises
    ------
    InvalidProblemError
        If the layout is unknown, or the machine has no `backward_rates`.
    """
    return TrainingForecast(
        forecast(problem, machine, sequence_layout),
        backward_forecast(problem, machine, sequence_layout),
    )


def _rates(machine: Machine) -> ComputeRates:
    if machine.backward_rates is None:
        raise InvalidProblemError("machine: got no backward_rates, must have them for a backward")
    return machine.backward_rates
