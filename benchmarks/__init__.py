"""Measurements of the installed package on a GPU; `python -m benchmarks.evidence` runs them all."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The oracle, the inputs and the way to run a plan on torch tensors are the tests' own.
sys.path.insert(0, str(ROOT / "tests"))
# Of the rings in the `balance`, `overlap` and `graph` rows: bf16, B 1.
RING_HEADS, RING_HEAD_DIM = 16, 128
