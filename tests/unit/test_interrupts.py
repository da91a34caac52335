"""Ctrl-C ends host runs and waits for missing ranks at once, as a KeyboardInterrupt."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels._core import _info
from baracuda_kernels.testing import attention

HOST = bk.Stream.host()
# Seconds from the signal to the exception: half a second is promised, the rest allows for load.
SOON = 1.5


@contextlib.contextmanager
def interrupted(after=0.3, number=signal.SIGINT):
    """Expects a KeyboardInterrupt soon after a signal that is sent in `after` seconds."""
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    start = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.cancel()  # if the block was over before
        with contextlib.suppress(KeyboardInterrupt):
            timer.join()
    assert after <= time.monotonic() - start < after + SOON


@pytest.fixture(autouse=True)
def two_threads():
    """So that the work takes as long on a machine with many cores."""
    before = _info.host_info()["threads"]
    _info.set_host_threads(min(2, before))
    yield
    _info.set_host_threads(before)


def long_problem(rows=24576):
    """About ten seconds of work of two threads."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 4, rows, 64), np.float32) for _ in range(3)]


def sdpa(x):
    b, h, s, d = x[0].shape
    plan = bk.FlashSdpaPlan.select(HOST, bk.FlashSdpaDescriptor(b, h, s, s, d))
    y = np.empty_like(x[0])
    plan.run(HOST, bk.FlashSdpaArgs(q=x[0], k=x[1], v=x[2], y=y))
    return y


def ring_arguments(plan, x, world_size):
    made = []
    for rank in range(world_size):
        q, k, v = (bk.shard(a, world_size)[rank].copy() for a in x)
        scratch = [np.empty(plan.kv_scratch_elements, q.dtype) for _ in range(2)]
        state = np.empty(plan.accumulator_scratch_bytes, np.uint8)
        made.append(bk.RingAttentionArgs(
            q=q, k=k, v=v, y=np.empty_like(q), kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
            accumulator_scratch=state))
    return made


def ring_plan(x, world_size):
    b, h, s, d = x[0].shape
    return bk.RingAttentionPlan.select(
        HOST, bk.RingAttentionDescriptor(b, h, s // world_size, s // world_size, d))


def sdpa_backward(x, lse):
    b, h, s, d = x[0].shape
    plan = bk.FlashSdpaBackwardPlan.select(HOST, bk.FlashSdpaDescriptor(b, h, s, s, d))
    gradients = [np.empty_like(a) for a in x]
    plan.run(HOST, bk.FlashSdpaBackwardArgs(
        q=x[0], k=x[1], v=x[2], y=x[0], dy=x[1], lse=lse, dq=gradients[0], dk=gradients[1],
        dv=gradients[2], scratch=np.empty(plan.scratch_bytes, np.uint8)))
    return gradients


def assert_still_right():
    x = [a[:, :, :64] for a in long_problem(64)]
    assert np.allclose(sdpa(x), attention(*x)[0], atol=1e-5)


@pytest.mark.parametrize("threads", [2, 16])
def test_a_backward_call_on_the_host_stops(threads):
    """One pass over the heads, and two."""
    x = long_problem()
    before = _info.host_info()["threads"]
    _info.set_host_threads(threads)
    try:
        with interrupted():
            sdpa_backward(x, np.zeros(x[0].shape[:3], np.float32))
        small = [a[:, :, :64] for a in x]
        lse = attention(*small)[1].astype(np.float32)
        again = [sdpa_backward(small, lse) for _ in range(2)]
    finally:
        _info.set_host_threads(before)
    assert all(np.isfinite(a).all() for a in again[0])
    assert all(map(np.array_equal, *again))


def test_an_attention_call_on_the_host_stops():
    x = long_problem()
    with interrupted():
        sdpa(x)
    assert_still_right()


def test_with_one_thread_too():
    script = textwrap.dedent("""
        import os, signal, threading, time
        import numpy as np, baracuda_kernels as bk
        x = np.ones((1, 4, 12288, 64), np.float32)
        plan = bk.FlashSdpaPlan.select(bk.Stream.host(), bk.FlashSdpaDescriptor(1, 4, 12288, 12288, 64))
        args = bk.FlashSdpaArgs(q=x, k=x, v=x, y=np.empty_like(x))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        try:
            plan.run(bk.Stream.host(), args)
        except KeyboardInterrupt:
            print(time.monotonic() - start)
    """)
    result = subprocess.run([sys.executable, "-c", script], check=False,
                            capture_output=True, text=True, timeout=60,
                            env={**os.environ, "BARACUDA_NUM_THREADS": "1"})
    assert result.returncode == 0 and 0.3 <= float(result.stdout) < 0.3 + SOON, result


@pytest.mark.parametrize("progress", [None, lambda done, total: None], ids=["plain", "progress"])
def test_run_local_ring_stops(progress):
    x = long_problem()
    with interrupted(1.0):  # making the ring takes its time
        bk.run_local_ring(*x, 4, progress=progress)
    assert_still_right()


def test_a_ring_that_was_interrupted_is_refused_until_made_anew():
    x = long_problem()
    plan, ring = ring_plan(x, 2), bk.LocalCommunicator.ring(2)
    args = ring_arguments(plan, x, 2)
    with interrupted():
        ring.run_all(HOST, plan, args)
    with pytest.raises(bk.CommunicatorError, match="aborted"):
        ring.run_all(HOST, plan, args)


def test_a_ring_of_one_rank_goes_on():
    x = long_problem()
    plan, ring = ring_plan(x, 1), bk.LocalCommunicator.ring(1)
    with interrupted():
        plan.run(HOST, ring[0], ring_arguments(plan, x, 1)[0])
    small = [a[:, :, :64] for a in x]
    plan = ring_plan(small, 1)
    args = ring_arguments(plan, small, 1)[0]
    plan.run(HOST, ring[0], args)
    assert np.allclose(np.asarray(args.y), attention(*small)[0], atol=1e-5)


def test_waiting_for_a_missing_rank_ends():
    x = long_problem(64)
    plan, ring = ring_plan(x, 2), bk.LocalCommunicator.ring(2, timeout=30)
    args = ring_arguments(plan, x, 2)
    with interrupted():
        plan.run(HOST, ring[0], args[0])
    for rank in range(2):
        with pytest.raises(bk.CommunicatorError, match="aborted"):
            plan.run(HOST, ring[rank], args[rank])


def test_validating_with_a_missing_rank_ends():
    x = long_problem(64)
    plan, ring = ring_plan(x, 2), bk.LocalCommunicator.ring(2, timeout=30)
    with interrupted():
        plan.validate(ring[0])


def test_an_abort_ends_what_another_thread_computes():
    x = long_problem()
    plan, ring = ring_plan(x, 2), bk.LocalCommunicator.ring(2)
    args, raised = ring_arguments(plan, x, 2), []

    def drive():
        try:
            ring.run_all(HOST, plan, args)
        except bk.CommunicatorError as error:
            raised.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    time.sleep(0.3)
    ring.abort()
    thread.join(SOON)
    assert not thread.is_alive() and "aborted" in str(raised[0])


def test_any_exception_of_a_handler_comes_through():
    class Late(Exception):
        pass

    def raise_late(*_):
        raise Late

    before = signal.signal(signal.SIGUSR1, raise_late)
    x = long_problem()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        with pytest.raises(Late):
            sdpa(x)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_may_attend_and_the_call_goes_on():
    small = [a[:, :, :64] for a in long_problem(64)]
    exact, seen = attention(*small)[0], []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(sdpa(small)))
    x = long_problem(8192)
    expected = sdpa(x)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        y = sdpa(x)
        while not seen:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert np.array_equal(y, expected) and np.allclose(seen[0], exact, atol=1e-5)
