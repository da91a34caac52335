"""Predicts the memory and the time of a ring of P GPUs, and recommends a setting.

It is arithmetic alone and needs no GPU. ``baracuda-kernels predict`` shows the results.
``docs/predict.md`` has the formulas and their limits.
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
    backward_scratch,
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
    "backward_scratch",
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
