"""Measurements of the installed package on a GPU; `python -m benchmarks.evidence` runs them all.

One file a thing measured, whose `rows()` gives rows of the kinds in `benchmarks.rows`.
"""

from benchmarks.source import ROOT as ROOT

# Of the rings in the `balance`, `overlap` and `graph` rows: bf16, B 1.
RING_HEADS, RING_HEAD_DIM = 16, 128
