"""Times the host family against torch CPU, interleaved: python tests/native/time_host.py LIBRARY"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`: this file is run by its path

import numpy as np
import torch
import torch.nn.functional as F
from helpers.host_abi import CAUSAL, ELEMENT, FIRST, LAST, Library, make_params

lib = Library(sys.argv[1])
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
threads = lib.c.baracuda_host_threads()
torch.set_num_threads(threads)
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}

# element, B, H, Hkv, Q, K, D, causal
CASES = [
    ("f32", 1, 8, 8, 4096, 4096, 128, False), ("f32", 1, 8, 8, 4096, 4096, 128, True),
    ("f32", 1, 8, 8, 4096, 4096, 64, False), ("f32", 1, 8, 8, 4096, 4096, 64, True),
    ("f32", 4, 8, 2, 1024, 1024, 128, True), ("f32", 16, 8, 8, 128, 128, 64, False),
    ("f32", 1, 32, 8, 1, 8192, 128, False), ("bf16", 1, 32, 8, 1, 8192, 128, False),
    ("bf16", 1, 8, 8, 4096, 4096, 128, True), ("f16", 1, 8, 8, 2048, 2048, 128, True),
    ("f64", 1, 8, 8, 2048, 2048, 128, True),
]  # fmt: skip


class View:
    """What make_params needs of an array, for torch tensors (NumPy has no bf16)."""

    def __init__(self, t):
        self.t, self.shape, self.itemsize = t, tuple(t.shape), t.element_size()
        self.strides = tuple(s * self.itemsize for s in t.stride())
        self.size = t.numel()
        self.ctypes = type("c", (), {"data": t.data_ptr()})


print(lib.c.baracuda_host_isa().decode(), threads, "threads")
for element, b, h, hkv, s, k_len, d, causal in CASES:
    q, k, v = (
        torch.randn(b, n, rows, d).to(TORCH[element])
        for n, rows in ((h, s), (hkv, k_len), (hkv, k_len))
    )
    y = torch.empty_like(q)
    lse = np.empty((b, h, s), np.float32)
    flags = FIRST | LAST | (CAUSAL if causal else 0)
    p = make_params(View(q), View(k), View(v), View(y), lse, element=element, flags=flags)
    assert ELEMENT[element] == p.element
    ours, theirs = [], []
    for r in range(rounds + 1):
        t0 = time.perf_counter()
        lib.step(p)
        t1 = time.perf_counter()
        ref = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=h != hkv)
        t2 = time.perf_counter()
        if r:
            ours.append(t1 - t0)
            theirs.append(t2 - t1)
    error = ((y.double() - ref.double()).norm() / ref.double().norm()).item()
    flops = 4 * b * h * s * k_len * d / (2 if causal else 1)
    a, c = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(x / z for x, z in zip(theirs, ours))
    print(
        f"{element:5} B{b} H{h}/{hkv} Q{s} K{k_len} D{d} {'causal' if causal else 'full':6} "
        f"ours {a * 1e3:8.2f} ms {flops / a / 1e9:6.1f} GF/s  torch {c * 1e3:8.2f} ms "
        f"{flops / c / 1e9:6.1f} GF/s  speedup {ratio:.2f}  diff {error:.1e}"
    )
