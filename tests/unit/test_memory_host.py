"""2,000 runs with random plans, layouts and world sizes in one process: memory stays flat."""

import gc
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

import baracuda_kernels as bk

# Two threads' stacks and an arena; 2,000 leaked rings of a few KB each would be more.
ALLOWED_BYTES = 4 << 20


def random_run(random):
    """A ring of random size over a random problem, made, run and dropped."""
    ranks = int(random.integers(1, 9))
    group, kv_heads = (int(n) for n in random.integers(1, 3, 2))
    rows, keys = (int(n) for n in random.integers(0, 24, 2))
    head_dim = int(random.choice((8, 16, 24)))
    layout = bk.SequenceLayout(int(random.integers(0, 3)))
    stream = bk.Stream.host()
    desc = bk.RingAttentionDescriptor(
        1, group * kv_heads, rows, keys, head_dim, is_causal=bool(random.integers(0, 2)),
        element=bk.ElementKind.F32, num_kv_heads=kv_heads, sequence_layout=layout,
    )  # fmt: skip
    plan = bk.RingAttentionPlan.select(stream, desc)
    args = []
    for _ in range(ranks):
        q = random.standard_normal((1, group * kv_heads, rows, head_dim), np.float32)
        k, v = random.standard_normal((2, 1, kv_heads, keys, head_dim), np.float32)
        scratch = np.empty((2, plan.kv_scratch_elements), np.float32)
        state = np.empty(plan.accumulator_scratch_bytes, np.uint8)
        args.append(
            bk.RingAttentionArgs(
                q=q, k=k, v=v, y=np.empty_like(q), kv_scratch_a=scratch[0],
                kv_scratch_b=scratch[1], accumulator_scratch=state,
            )
        )  # fmt: skip
    timeline = [bk.RingTimeline() for _ in args] if random.integers(0, 2) else None
    bk.LocalCommunicator.ring(ranks).run_all(stream, plan, args, timeline=timeline)


def resident_bytes():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main():
    random = np.random.default_rng(0)
    for _ in range(400):
        random_run(random)
    before = resident_bytes()
    for _ in range(2000):
        random_run(random)
    print(resident_bytes() - before)


def test_memory_is_flat_after_2000_random_runs():
    # Another process, since the garbage of other tests would hide the measurement.
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= ALLOWED_BYTES


if __name__ == "__main__":
    main()
