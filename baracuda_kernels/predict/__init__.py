"""Scale on paper: what a ring of P GPUs needs, how long it takes, and what to choose.

Pure arithmetic: needs no GPU, and runs nothing. ``baracuda-kernels predict`` shows it; the formulas
and what they leave out are in ``docs/predict.md``.
"""

from baracuda_kernels.predict._cards import Card, cards, find_card
from baracuda_kernels.predict._compare import (
    LAYOUTS,
    Comparison,
    Recommendation,
    compare,
    hiding_chunk,
    smallest_hiding_chunk,
)
from baracuda_kernels.predict._model import (
    Machine,
    RankMemory,
    RingForecast,
    RingProblem,
    StepForecast,
    compute_seconds,
    exchange_seconds,
    forecast,
    rank_memory,
)
from baracuda_kernels.predict._pairs import VisiblePairs, visible_pairs
from baracuda_kernels.predict._rates import ComputeRates, default_rates, measured_rates
from baracuda_kernels.predict._training import (
    TrainingForecast,
    TrainingMemory,
    backward_compute_seconds,
    backward_exchange_seconds,
    backward_forecast,
    training_forecast,
    training_memory,
)

__all__ = [
    "LAYOUTS",
    "Card",
    "Comparison",
    "ComputeRates",
    "Machine",
    "RankMemory",
    "Recommendation",
    "RingForecast",
    "RingProblem",
    "StepForecast",
    "TrainingForecast",
    "TrainingMemory",
    "VisiblePairs",
    "backward_compute_seconds",
    "backward_exchange_seconds",
    "backward_forecast",
    "cards",
    "compare",
    "compute_seconds",
    "default_rates",
    "exchange_seconds",
    "find_card",
    "forecast",
    "hiding_chunk",
    "measured_rates",
    "rank_memory",
    "smallest_hiding_chunk",
    "training_forecast",
    "training_memory",
    "visible_pairs",
]
