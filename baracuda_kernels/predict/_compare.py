"""Compares layouts and rank counts, finds the smallest chunk, and recommends a setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from baracuda_kernels._arguments import layout_of, number
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.predict._model import (
    MAX_SEQ,
    Machine,
    RankMemory,
    RingForecast,
    RingProblem,
    exchange_seconds,
    forecast,
    rank_memory,
)
from baracuda_kernels.predict._training import (
    TrainingForecast,
    TrainingMemory,
    backward_exchange_seconds,
    gradient_bytes_per_hop,
    training_forecast,
    training_memory,
)
from baracuda_kernels.predict._units import duration, size

# In order of preference if forecasts are equal: contiguous shards have the simplest positions, and
# zigzag has whole blocks without a mask.
LAYOUTS = (SequenceLayout.CONTIGUOUS, SequenceLayout.ZIGZAG, SequenceLayout.STRIPED)
# Forecasts that differ by less than this are equal.
_TIE = 0.005

Forecast = RingForecast | TrainingForecast


def hiding_chunk(problem: RingProblem, machine: Machine, *, causal: bool = False) -> float:
    """The least number of rows of a chunk at which compute hides the exchange, in closed form.

    Solves a·L² = latency + b·L, with a = 4·B·H·D·φ / R and b = 2·B·Hkv·D·size / W. R: flops a
    second at the problem's chunk on the SMs that the exchange leaves. W: bytes a second of the
    link. φ: the visible part of a step, 1, or 1/2 if `causal`, since the first step of every layout
    is on the diagonal. The traffic of the state and SMs without tiles are left out; both would make
    the result smaller.

    Parameters
    ----------
    problem : RingProblem
        Its `causal` is not used.
    machine : Machine
    causal : bool, default False
    """
    left = (machine.sms - machine.margin) / machine.sms
    rate = machine.rates.tflops(problem.chunk, causal) * 1e12 * left
    a = problem.flops_per_pair * (0.5 if causal else 1.0) / rate
    b = problem.bytes_per_hop / problem.chunk / machine.link_bytes_per_second
    return (b + math.sqrt(b * b + 4 * a * machine.latency)) / (2 * a)


def smallest_hiding_chunk(
    problem: RingProblem,
    machine: Machine,
    sequence_layout: SequenceLayout | str,
    *,
    training: bool = False,
) -> int | None:
    """Rows of the smallest chunk at which the model has no exposed exchange.

    The last exchange of a backward is left out: it returns the sums when all steps are over, so
    nothing can hide it. The result is found by bisection; if rates fall as the length rises, there
    may be a smaller one.

    Parameters
    ----------
    problem : RingProblem
        Its `seq` is not used. On one rank there is no exchange, and the result is 1.
    machine : Machine
    sequence_layout : SequenceLayout or str
    training : bool, default False
        A forward and a backward.

    Returns
    -------
    int or None
        None if no chunk up to 2**28 rows (2**29 on two ranks) hides it.

    Raises
    ------
    InvalidProblemError
        If the layout is unknown.
    """
    # All steps between the first and the last have the same slowest rank, so a ring of three ranks
    # is enough. In a backward step 1 differs too, since no sum travels yet: four ranks.
    ranks = min(problem.ranks, 4 if training else 3)
    predict = training_forecast if training else forecast

    def hidden(chunk: int) -> bool:
        small = dataclasses.replace(problem, ranks=ranks, seq=ranks * chunk)
        return predict(small, machine, sequence_layout).hidden

    low, high = 0, 1
    while not hidden(high):
        low, high = high, 2 * high
        if ranks * high > MAX_SEQ:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hidden(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Recommendation:
    """A `layout`, a number of `ranks`, and the `reason`.

    `fits` tells whether the memory is enough, `efficient` whether the efficiency is. If one of them
    is false, nothing is recommended, and the setting is the one that comes closest.
    """

    layout: SequenceLayout
    ranks: int
    fits: bool
    efficient: bool
    reason: str

    @property
    def advised(self) -> bool:
        """Whether the setting is recommended."""
        return self.fits and self.efficient


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes
    ----------
    problem : RingProblem
    machine : Machine
    staged, in_place : RankMemory
        A rank's memory with K and V staged in scratch A, and with K and V in place.
    exchange : float
        Seconds of one exchange.
    forecasts : tuple of RingForecast or TrainingForecast
        At the problem's ranks, one per layout.
    sweep : tuple of RingForecast or TrainingForecast
        For every layout, at every rank count that divides the problem's.
    hiding_chunks : dict
        Rows of the smallest chunk that hides the exchange: `closed_form` (not causal),
        `closed_form_causal`, and by layout that of the model. None on one rank, which has no
        exchange.
    recommendation : Recommendation
    training : TrainingMemory, optional
        A rank's memory in the backward; None if the forecasts are of a forward alone.
    """

    problem: RingProblem
    machine: Machine
    staged: RankMemory
    in_place: RankMemory
    exchange: float
    forecasts: tuple[Forecast, ...]
    sweep: tuple[Forecast, ...]
    hiding_chunks: dict[str, float | int | None]
    recommendation: Recommendation
    training: TrainingMemory | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON: times in seconds, sizes in bytes, infinite numbers as None."""
        problem, machine, advice = self.problem, self.machine, self.recommendation
        endless = [name for name in ("link_gbps", "memory_gib")
                   if not math.isfinite(getattr(machine, name))]  # fmt: skip
        more: dict[str, Any] = {}
        if self.training is not None:
            sums = gradient_bytes_per_hop(problem) if problem.ranks > 1 else 0
            more = {
                "training_memory": {**dataclasses.asdict(self.training), "total": self.training.total},
                "backward_exchange": {
                    "gradient_bytes_per_hop": sums,
                    "bytes_sent_per_rank": problem.bytes_sent + (problem.ranks - 1) * sums,
                    "seconds": backward_exchange_seconds(problem, machine).tolist(),
                },
            }
        return {
            "training": self.training is not None,
            **more,
            "problem": {**dataclasses.asdict(problem), "chunk": problem.chunk},
            "machine": dataclasses.asdict(machine) | dict.fromkeys(endless),
            "memory": {
                name: {**dataclasses.asdict(memory), "total": memory.total}
                for name, memory in (("staged", self.staged), ("in_place", self.in_place))
            },
            "exchange": {
                "hops": problem.ranks - 1,
                "bytes_per_hop": problem.bytes_per_hop if problem.ranks > 1 else 0,
                "bytes_sent_per_rank": problem.bytes_sent,
                "seconds_per_hop": self.exchange,
            },
            "layouts": {name_of(f.layout): f.to_dict() for f in self.forecasts},
            "smallest_hiding_chunk": self.hiding_chunks,
            "sweep": [
                {
                    "ranks": f.problem.ranks,
                    "layout": name_of(f.layout),
                    "seconds": f.seconds,
                    "exposed_seconds": f.exposed,
                    "efficiency": f.efficiency,
                    "balance": f.balance,
                }
                for f in self.sweep
            ],
            "recommendation": {
                **dataclasses.asdict(advice),
                "advised": advice.advised,
                "layout": name_of(advice.layout),
            },
        }


def compare(
    problem: RingProblem,
    machine: Machine,
    layouts: Iterable[SequenceLayout | str] = LAYOUTS,
    *,
    min_efficiency: float = 0.8,
    training: bool = False,
    scratch: Callable[[RingProblem], int] | None = None,
) -> Comparison:
    """Forecast a problem in several layouts, and recommend a setting.

    The recommendation is the fastest setting that fits the memory and reaches `min_efficiency`, of
    all layouts and of all rank counts that divide the problem's.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
    layouts : iterable of SequenceLayout or str, default all three
    min_efficiency : float, default 0.8
        In (0, 1].
    training : bool, default False
        Forecast a forward and a backward; `machine` must then have `backward_rates`.
    scratch : callable, optional
        ``scratch(problem) -> bytes`` that the backward's kernel asks for, such as
        `backward_scratch`; it is asked for every rank count. By default as in `training_memory`.

    Raises
    ------
    InvalidProblemError
        If `min_efficiency` is out of its range, there is no layout, a layout is unknown or given
        twice, or the machine lacks `backward_rates` that are needed.
    """
    if isinstance(layouts, str) or not isinstance(layouts, Iterable):
        raise InvalidProblemError(f"layouts: got {layouts!r}, must be a list of layouts")
    chosen = tuple(layout_of(layout, "layouts") for layout in layouts)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InvalidProblemError(f"layouts: got {chosen}, must be different ones, one or more")
    if not 0 < number("min_efficiency", min_efficiency) <= 1:
        raise InvalidProblemError(f"min_efficiency: got {min_efficiency}, must be in (0, 1]")
    def memory(of: RingProblem) -> TrainingMemory:
        return training_memory(of, None if scratch is None else scratch(of))

    predict = training_forecast if training else forecast
    counts = [n for n in range(1, problem.ranks + 1) if problem.ranks % n == 0]
    sweep = tuple(
        predict(dataclasses.replace(problem, ranks=n), machine, layout)
        for n in counts
        for layout in chosen
    )
    chunks: dict[str, float | int | None] = {"closed_form": None, "closed_form_causal": None}
    if problem.ranks > 1:
        chunks["closed_form"] = hiding_chunk(problem, machine)
        chunks["closed_form_causal"] = hiding_chunk(problem, machine, causal=True)
    for layout in chosen:
        alone = problem.ranks == 1
        found = None if alone else smallest_hiding_chunk(
            problem, machine, layout, training=training
        )  # fmt: skip
        chunks[name_of(layout)] = found
    return Comparison(
        problem=problem,
        machine=machine,
        staged=rank_memory(problem, in_place=False),
        in_place=rank_memory(problem, in_place=True),
        exchange=exchange_seconds(problem, machine),
        forecasts=sweep[-len(chosen) :],
        sweep=sweep,
        hiding_chunks=chunks,
        recommendation=_recommend(problem, machine, sweep, min_efficiency, chunks, memory),
        training=memory(problem) if training else None,
    )


def name_of(layout: SequenceLayout) -> str:
    """``"zigzag"`` for ``SequenceLayout.ZIGZAG``."""
    return layout.name.lower()


def _recommend(
    problem: RingProblem,
    machine: Machine,
    sweep: tuple[Forecast, ...],
    floor: float,
    chunks: dict[str, float | int | None],
    memory: Callable[[RingProblem], TrainingMemory],
) -> Recommendation:
    def need(f: Forecast) -> int:
        if isinstance(f, TrainingForecast):
            return memory(f.problem).total
        return min(rank_memory(f.problem, in_place=flag).total for flag in (False, True))

    roomy = [f for f in sweep if need(f) <= machine.memory_gib * 2**30]
    efficient = [f for f in roomy if f.efficiency >= floor]
    if efficient:
        best = _first_near(efficient, lambda f: f.seconds)
    else:
        # No setting is good enough: take the most efficient one, or if none fits the memory, the
        # one that needs the least.
        most = max(f.problem.ranks for f in sweep)
        rest = roomy or [f for f in sweep if f.problem.ranks == most]
        best = _first_near(rest, lambda f: 1 / f.efficiency)
    reason = _reason(problem, best, sweep, floor, chunks)
    if not roomy:
        reason = (
            f"no count up to {problem.ranks} ranks fits {machine.memory_gib:g} GiB (at "
            f"{best.problem.ranks}: {size(need(best))}); " + reason
        )
    elif not efficient:
        reason = f"nothing that fits reaches {floor:.0%} efficiency; " + reason
    return Recommendation(
        best.layout, best.problem.ranks, bool(roomy), best.efficiency >= floor, reason
    )


def _first_near(forecasts: list[Forecast], cost: Any) -> Forecast:
    """The first forecast, in order of rank counts and layouts, whose cost is the least or within
    _TIE of it."""
    least = min(map(cost, forecasts))
    return next(f for f in forecasts if cost(f) <= least * (1 + _TIE))


def _reason(
    problem: RingProblem,
    best: Forecast,
    sweep: tuple[Forecast, ...],
    floor: float,
    chunks: dict[str, float | int | None],
) -> str:
    ranks = best.problem.ranks
    parts = [duration(best.seconds)]
    if ranks > 1:
        parts[0] += f" at {best.efficiency:.0%} of {ranks} ideal GPUs, balance {best.balance:.2f}"
    others = [f for f in sweep if f.problem.ranks == ranks and f.layout is not best.layout]
    if others and ranks > 1:
        listed = ", ".join(f"{name_of(f.layout)} {duration(f.seconds)}" for f in others)
        parts.append(f"beside it {listed}")
    if ranks > 1:
        if best.hidden:
            rest = f", but for {duration(best.exposed)} at the end" if best.exposed else ""
            parts.append(f"the exchange is hidden{rest}")
        else:
            least = chunks[name_of(best.layout)]
            hides = f", hidden from chunks of {least} rows on" if least else ""
            parts.append(
                f"{best.exposed / best.seconds:.0%} of the time is exposed communication at "
                f"chunks of {best.problem.chunk} rows{hides}"
            )
    if ranks < problem.ranks:
        top = max(
            (f for f in sweep if f.problem.ranks == problem.ranks), key=lambda f: f.efficiency
        )
        why = f"{problem.ranks} ranks would run at {top.efficiency:.0%}"
        if top.efficiency < floor:
            why += f", less than {floor:.0%}"
        parts.append(f"{why} ({name_of(top.layout)}, {duration(top.seconds)})")
    return "; ".join(parts)
