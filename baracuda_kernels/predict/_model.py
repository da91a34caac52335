"""The model of one ring: memory, bytes, and the time of every step.

The model assumes lock step: a step ends when the slowest rank has computed and the chunk has
arrived, and the next step begins then. `docs/predict.md` has the formulas and their limits.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from baracuda_kernels._arguments import flag, integer, layout_of, number
from baracuda_kernels._core._enums import ElementKind, SequenceLayout
from baracuda_kernels._core._nccl_options import DEFAULT_MAX_CTAS
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.predict._cards import cards
from baracuda_kernels.predict._pairs import visible_pairs
from baracuda_kernels.predict._rates import ComputeRates
from baracuda_kernels.sharding import rows_per_rank

if TYPE_CHECKING:
    from baracuda_kernels import RingAttentionDescriptor

MAX_SEQ = 2**30
MAX_RANKS = 4096
DTYPES = ("f16", "bf16", "f32", "f64")
# The exchanges, each with its defaults for a machine.
EXCHANGES: dict[str, dict[str, float | int]] = {
    "nccl": {"latency_us": 10.0, "sm_margin": DEFAULT_MAX_CTAS},
    "peer": {"latency_us": 20.0, "sm_margin": 0},
}


@dataclass(frozen=True, kw_only=True)
class RingProblem:
    """Self-attention over one sequence that the ranks share evenly.

    Parameters
    ----------
    seq : int
        Tokens of the whole sequence, 1 to 2**30; a multiple of `ranks`.
    ranks : int
        Number of GPUs of the ring, P, 1 to 4096.
    heads : int
        Number of query heads, H.
    head_dim : int
        Elements of a head, D.
    batch : int, default 1
        Number of sequences, B.
    kv_heads : int, default `heads`
        Number of K/V heads, Hkv; must divide `heads`.
    dtype : str, default "bf16"
        f16, bf16, f32 or f64.
    causal : bool, default False

    Raises
    ------
    InvalidProblemError
        If a number is out of its range, `seq` is not a multiple of `ranks` (the message names the
        nearest ones), or `kv_heads` does not divide `heads`.
    """

    seq: int
    ranks: int
    heads: int
    head_dim: int
    batch: int = 1
    kv_heads: int | None = None
    dtype: str = "bf16"
    causal: bool = False

    def __post_init__(self) -> None:
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        limits = {"seq": MAX_SEQ, "ranks": MAX_RANKS}
        for name in ("seq", "ranks", "heads", "head_dim", "batch", "kv_heads"):
            value = integer(name, getattr(self, name), least=1, most=limits.get(name, 2**20))
            object.__setattr__(self, name, value)
        object.__setattr__(self, "causal", flag("causal", self.causal))
        if self.heads % self.hkv:
            raise InvalidProblemError(
                f"kv_heads: got {self.kv_heads}, must divide the {self.heads} heads"
            )
        if self.dtype not in DTYPES:
            raise InvalidProblemError(f"dtype: got {self.dtype!r}, must be one of {DTYPES}")
        rows_per_rank(self.seq, self.ranks)

    @property
    def hkv(self) -> int:
        """`kv_heads`, or its default."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def chunk(self) -> int:
        """Number of rows, and of keys, of a rank."""
        return self.seq // self.ranks

    @property
    def itemsize(self) -> int:
        """Bytes of an element of q, k, v and y."""
        return ElementKind.parse(self.dtype).itemsize

    @property
    def kv_scratch_elements(self) -> int:
        """Elements of one K/V scratch buffer, 2·B·Hkv·K·D."""
        return 2 * self.batch * self.hkv * self.chunk * self.head_dim

    @property
    def bytes_per_hop(self) -> int:
        """Bytes of K and V that a rank sends in one exchange."""
        return self.kv_scratch_elements * self.itemsize

    @property
    def bytes_sent(self) -> int:
        """Bytes that a rank sends in all, (P-1)·2·B·Hkv·K·D·size."""
        return (self.ranks - 1) * self.bytes_per_hop

    @property
    def accumulator_itemsize(self) -> int:
        """Bytes of a number of lse, of the state, and of the sums of dK and dV; 4, with f64 8."""
        return 8 if self.dtype == "f64" else 4

    @property
    def state_bytes(self) -> int:
        """Bytes of a rank's accumulator, B·H·Q·(D+2)·4, or with f64 B·H·Q·(D+2)·8."""
        rows = self.batch * self.heads * self.chunk
        return rows * (self.head_dim + 2) * self.accumulator_itemsize

    @property
    def descriptor(self) -> RingAttentionDescriptor:
        """What one rank computes, for `registry.explain` and `select`."""
        from baracuda_kernels import RingAttentionDescriptor

        return RingAttentionDescriptor(
            self.batch,
            self.heads,
            self.chunk,
            self.chunk,
            self.head_dim,
            is_causal=self.causal,
            element=ElementKind.parse(self.dtype),
            num_kv_heads=self.hkv,
        )

    @property
    def flops_per_pair(self) -> int:
        """Flops of a visible (row, key) pair over all heads, 4·B·H·D."""
        return 4 * self.batch * self.heads * self.head_dim

    @property
    def visible(self) -> int:
        """Number of visible pairs of the whole sequence in one head."""
        return self.seq * (self.seq + 1) // 2 if self.causal else self.seq**2


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU of the ring and its link.

    Parameters
    ----------
    rates : ComputeRates
    link_gbps : float
        Gbit/s that a GPU sends to the next rank while it receives as much from the previous one.
        More than 0; ``inf`` for a link that takes no time.
    exchange : str, default "nccl"
        "nccl", or "peer" for the copy engines inside a host, which take no SMs.
    latency_us : float, default 10 with NCCL and 20 with peer
        Microseconds of an exchange besides its bytes: with NCCL from the launch of its kernel to
        its end, with peer from the grant of a buffer to the arrival.
    sms : int, default those of an H100
        Number of SMs of the GPU.
    sm_margin : int, default `DEFAULT_MAX_CTAS` with NCCL and 0 with peer
        Number of SMs that a step leaves to a concurrent exchange: `max_ctas` of the communicator.
        With peer it must be 0.
    memory_gib : float, default that of an H100
        GiB of the GPU that the op may take.
    backward_rates : ComputeRates, optional
        Rates of the backward, which has 2.5 times the forward's flops. Forecasts of a backward need
        them.

    Raises
    ------
    InvalidProblemError
        If a number is out of its range, or rates are no `ComputeRates`.
    """

    rates: ComputeRates
    link_gbps: float
    exchange: str = "nccl"
    latency_us: float | None = None
    sms: int = field(default_factory=lambda: cards()[0].sms)
    sm_margin: int | None = None
    memory_gib: float = field(default_factory=lambda: cards()[0].memory_gib)
    backward_rates: ComputeRates | None = None

    def __post_init__(self) -> None:
        for name, rates in (("rates", self.rates), ("backward_rates", self.backward_rates)):
            if not isinstance(rates, ComputeRates) and (name == "rates" or rates is not None):
                raise InvalidProblemError(
                    f"{name}: got {type(rates).__name__}, must be a ComputeRates"
                )
        if not isinstance(self.exchange, str) or self.exchange not in EXCHANGES:
            raise InvalidProblemError(
                f"exchange: got {self.exchange!r}, must be one of {tuple(EXCHANGES)}"
            )
        for name, value in EXCHANGES[self.exchange].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("link_gbps", "latency_us", "memory_gib"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        for name, least in (("sms", 1), ("sm_margin", 0)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least))
        for name in ("link_gbps", "memory_gib"):
            if not getattr(self, name) > 0:
                raise InvalidProblemError(f"{name}: got {getattr(self, name)}, must be more than 0")
        if not 0 <= self.latency < math.inf:
            raise InvalidProblemError(f"latency_us: got {self.latency_us}, must be 0 or more")
        if self.margin >= self.sms:
            raise InvalidProblemError(
                f"sm_margin: got {self.sm_margin}, must be in [0, sms) with sms = {self.sms}"
            )
        if self.exchange == "peer" and self.margin > 0:
            raise InvalidProblemError(
                f"sm_margin: got {self.sm_margin}, must be 0 by peer, which takes no SMs"
            )

    @property
    def latency(self) -> float:
        """Seconds of an exchange besides its bytes."""
        return 0.0 if self.latency_us is None else self.latency_us * 1e-6

    @property
    def margin(self) -> int:
        """`sm_margin`, or its default."""
        return 0 if self.sm_margin is None else self.sm_margin

    @property
    def link_bytes_per_second(self) -> float:
        """Bytes a second in one direction, Gbit/s / 8."""
        return self.link_gbps * 1e9 / 8


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank's operands and scratch, all in the caller's memory.

    `q`, `y` and `lse`; `scratch_a` and `scratch_b`, which receive chunks; the `accumulator`. `kv`
    are K and V outside of the scratch: 0 if they are staged in scratch A.
    """

    q: int
    y: int
    lse: int
    kv: int
    scratch_a: int
    scratch_b: int
    accumulator: int

    @property
    def total(self) -> int:
        """The sum of all fields."""
        return sum(dataclasses.astuple(self))


def rank_memory(problem: RingProblem, *, in_place: bool) -> RankMemory:
    """The memory of a rank during `run`.

    Parameters
    ----------
    problem : RingProblem
    in_place : bool
        K and V are given as ``k`` and ``v`` instead of staged in ``kv_scratch_a``. Then scratch A
        is needed from P = 2 on, and scratch B from P = 3 on.
    """
    rows = problem.batch * problem.heads * problem.chunk
    scratch, ranks = problem.bytes_per_hop, problem.ranks
    return RankMemory(
        q=rows * problem.head_dim * problem.itemsize,
        y=rows * problem.head_dim * problem.itemsize,
        lse=rows * problem.accumulator_itemsize,
        kv=scratch if in_place else 0,
        scratch_a=scratch if not in_place or ranks > 1 else 0,
        scratch_b=scratch if ranks > (2 if in_place else 1) else 0,
        accumulator=problem.state_bytes if ranks > 1 else 0,
    )


def exchange_seconds(problem: RingProblem, machine: Machine) -> float:
    """Seconds of one exchange without concurrent compute; 0 on one rank.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
    """
    if problem.ranks == 1:
        return 0.0
    return machine.latency + problem.bytes_per_hop / machine.link_bytes_per_second


def compute_seconds(
    problem: RingProblem, machine: Machine, sequence_layout: SequenceLayout | str = "contiguous"
) -> np.ndarray:
    """Seconds that each rank computes in each step.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
    sequence_layout : SequenceLayout or str, default "contiguous"

    Returns
    -------
    numpy.ndarray
        float64, shape ``[P, P]``: steps, ranks. 0 if the rank sees no key of the chunk.

    Raises
    ------
    InvalidProblemError
        If the layout is unknown.
    """
    layout = layout_of(sequence_layout)
    ranks, chunk, rates = problem.ranks, problem.chunk, machine.rates
    if ranks == 1:
        layout = SequenceLayout.CONTIGUOUS  # the same rows, in one block
    full_rate = problem.flops_per_pair / (rates.tflops(chunk) * 1e12)
    cut_rate = problem.flops_per_pair / (rates.tflops(chunk, causal=True) * 1e12)
    state = problem.state_bytes * rates.state_seconds_per_byte(chunk)
    rank = np.arange(ranks)
    seconds = np.zeros((ranks, ranks))
    live_later = np.zeros(ranks, dtype=bool)
    for step in reversed(range(ranks)):
        pairs = visible_pairs(
            chunk, rank, (rank - step) % ranks, ranks, layout, causal=problem.causal
        )
        live = pairs.live_rows > 0
        tiles = problem.batch * problem.heads * -(-pairs.live_rows // rates.tile_rows)
        usable = machine.sms - (machine.margin if step + 1 < ranks else 0)
        # Rates are those of a full GPU. A step has the SMs that the exchange leaves, at most one
        # for each tile.
        share = np.clip(tiles, 1, usable) / machine.sms
        # Rows that see no key do not load or store their state. Only the last live step finishes
        # all rows, and it stores no state. Step 0 loads none: every row sees its own key.
        part = pairs.live_rows / chunk
        loads = np.where(live_later, part, live) * (step > 0)
        moves = loads + part * live_later
        seconds[step] = (pairs.full * full_rate + pairs.cut * cut_rate) / share + moves * state
        live_later |= live
    return seconds


@dataclass(frozen=True)
class StepForecast:
    """One step of the ring; all times in seconds.

    `slowest`, `mean` and `fastest` are the compute times of the ranks. `exchange` is 0 in the last
    step. `exposed` is the part of the exchange after the slowest rank's compute.
    """

    slowest: float
    mean: float
    fastest: float
    exchange: float

    @property
    def exposed(self) -> float:
        """Seconds that every rank waits for the exchange."""
        return max(self.exchange - self.slowest, 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of the step, which are those of compute or exchange, whichever is longer."""
        return max(self.exchange, self.slowest)


@dataclass(frozen=True)
class RingForecast:
    """The forecast of a `problem` on a machine in one `layout`, with its `steps`.

    `one_gpu` is the seconds of the whole sequence on one such GPU. `flops` is the flops of a
    visible pair relative to the forward's: 1, or in a backward 2.5.
    """

    problem: RingProblem
    layout: SequenceLayout
    steps: tuple[StepForecast, ...]
    one_gpu: float
    flops: float = 1.0

    @property
    def compute(self) -> float:
        """Seconds of compute on the critical path, the sum of the slowest ranks."""
        return sum(step.slowest for step in self.steps)

    @property
    def exposed(self) -> float:
        """Seconds of communication that compute does not hide."""
        return sum(step.exposed for step in self.steps)

    @property
    def seconds(self) -> float:
        """Seconds of the whole call."""
        return sum(step.seconds for step in self.steps)

    @property
    def hidden(self) -> bool:
        """Whether compute hides every exchange that is concurrent with a step."""
        return all(step.exposed == 0 for step in self.steps[: self.problem.ranks])

    @property
    def balance(self) -> float:
        """Compute on the critical path over the average compute of a rank; 1 is ideal."""
        return self.compute / sum(step.mean for step in self.steps)

    @property
    def efficiency(self) -> float:
        """Part of P ideal GPUs' speed, `one_gpu` / (P · `seconds`)."""
        return self.one_gpu / (self.problem.ranks * self.seconds)

    @property
    def tflops_per_gpu(self) -> float:
        """Visible flops a second and GPU, in TFLOPS."""
        flops = self.problem.visible * self.problem.flops_per_pair * self.flops
        return flops / self.problem.ranks / self.seconds / 1e12

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; times in seconds."""
        return {
            "seconds": self.seconds,
            "compute_seconds": self.compute,
            "exposed_seconds": self.exposed,
            "efficiency": self.efficiency,
            "balance": self.balance,
            "tflops_per_gpu": self.tflops_per_gpu,
            "steps": [
                {**dataclasses.asdict(s), "exposed": s.exposed, "seconds": s.seconds}
                for s in self.steps
            ],
        }


def forecast(
    problem: RingProblem, machine: Machine, sequence_layout: SequenceLayout | str = "contiguous"
) -> RingForecast:
    """Predict one call of the ring.

    Parameters
    ----------
    problem : RingProblem
    machine : Machine
    sequence_layout : SequenceLayout or str, default "contiguous"

    Raises
    ------
    InvalidProblemError
        If the layout is unknown.
    """
    layout = layout_of(sequence_layout)
    alone = dataclasses.replace(problem, ranks=1)
    one_gpu = float(compute_seconds(alone, machine)[0, 0])
    exchange = exchange_seconds(problem, machine)
    seconds = compute_seconds(problem, machine, layout)
    steps = tuple(
        StepForecast(
            slowest=float(row.max()),
            mean=float(row.mean()),
            fastest=float(row.min()),
            exchange=exchange if step + 1 < problem.ranks else 0.0,
        )
        for step, row in enumerate(seconds)
    )
    return RingForecast(problem, layout, steps, one_gpu)
