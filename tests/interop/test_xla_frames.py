"""The XLA handlers as XLA calls them, on call frames made by hand: versions, sizes, refusals.

No JAX: the C ABI alone, as its header documents it.
"""

import ctypes
from ctypes import addressof

import numpy as np
import pytest
from helpers import xla_frames
from helpers.xla_frames import Call, Extension, Metadata

from baracuda_kernels.testing import attention, attention_backward


@pytest.fixture(scope="module")
def handler():
    return xla_frames.handler("baracuda_xla_attention_host")


@pytest.mark.parametrize("theirs, answer", [(1, 1), (3, 3), (9, 3)])
def test_the_version_it_was_written_to(handler, theirs, answer):
    """The version is neither newer than the runtime's nor newer than the handlers' own."""
    call, metadata = Call(minor=theirs), Metadata()
    extension = Extension(ctypes.sizeof(Extension), 1, None, ctypes.pointer(metadata))
    call.frame.extensions = addressof(extension)
    assert call(handler) is None
    assert (metadata.version.major, metadata.version.minor) == (0, answer)
    assert metadata.traits == 1  # may be recorded into a command buffer


Q = np.random.default_rng(0).standard_normal((1, 2, 16, 8), dtype=np.float32)
OPTIONS = {
    "first": 1,
    "last": 1,
    "causal": 0,
    "kernel": 0,
    "sequence_dim": 2,
    "sm_margin": 0,
    "interruptible": 1,
    "scale": 0.5,
}


def outputs():
    return [np.full_like(Q, np.nan), np.full((1, 2, 16, 1), np.nan, np.float32)]


def test_a_whole_call(handler):
    y, lse = out = outputs()
    call = Call([Q, Q, Q], out, OPTIONS)
    assert call(handler) is None and not call.errors
    exact = attention(Q, Q, Q, scale=0.5)
    assert np.allclose(y, exact[0], atol=1e-6) and np.allclose(lse[..., 0], exact[1], atol=1e-6)


@pytest.mark.parametrize(
    "change, code, message",
    [
        ({"kernel": 7}, 3, "kernel: got 7"),
        ({"sequence_dim": 3}, 3, "sequence_dim: got 3, must be 1 or 2"),
        ({"scale": 1}, 3, "attribute scale: got none of its type, must be a 64-bit float"),
        ({"scale": float("inf")}, 3, "scale: got inf"),
        ({"causal": 1}, 3, "operand 3 (maps): got none"),
        ({"first": 0}, 3, "operand 3 (state): got none"),
        ({"last": 0}, 3, "state: got 1024 bytes, must have 1280"),
    ],
)
def test_refusals(handler, change, code, message):
    call = Call([Q, Q, Q], outputs(), {**OPTIONS, **change})
    assert call(handler) == 1
    ((got, text),) = call.errors
    assert got == code and message in text


@pytest.mark.parametrize(
    "operands, results, message",
    [
        ([Q, Q], outputs(), "operand 2 (v): got none"),
        ([Q, Q, Q, Q], outputs(), "call frame: got 4 operands, must have 3"),
        ([Q, Q, Q[:, :1].copy()], outputs(), "v: got another shape or type, must have those of k"),
        ([Q, Q[..., :4].copy(), Q[..., :4].copy()], outputs(), "head_dim or type, must have"),
        ([Q.astype(np.int64)] * 3, outputs(), "q: got XLA data type 5"),
        ([Q[0], Q, Q], outputs(), "q: got 3 dimensions, must have 4"),
        ([Q, Q, Q], outputs()[:1], "result 1 (lse): got none"),
        ([Q, Q, Q], [Q[:, :1].copy(), outputs()[1]], "y: got another shape or type"),
        ([Q, Q, Q], [outputs()[0], Q], "lse: got another shape or type, must be f32 [B, H, Q]"),
    ],
)
def test_operands_that_do_not_belong_together(handler, operands, results, message):
    call = Call(operands, results, OPTIONS)
    assert call(handler) == 1
    assert message in call.errors[0][1]


def test_a_state_that_moves(handler):
    """A middle step whose result is not its operand's memory would lose what came before."""
    state, other = np.zeros((2, 320), np.float32)
    options = {**OPTIONS, "first": 0, "last": 0}
    call = Call([Q, Q, Q, state], [other], options)
    assert call(handler) == 1 and "state: got separate memory for its result" in call.errors[0][1]


def test_a_frame_of_an_older_layout(handler):
    call = Call([Q, Q, Q], outputs(), OPTIONS)
    call.frame.struct_size -= 8
    assert call(handler) == 1
    assert call.errors[0][0] == 12 and "call frame: got" in call.errors[0][1]


# The backward.


@pytest.fixture(scope="module")
def backward():
    return xla_frames.handler("baracuda_xla_attention_backward_host")


GRADIENT_OPTIONS = {
    "first": 1,
    "last": 1,
    "causal": 0,
    "dlse": 0,
    "kernel": 0,
    "sequence_dim": 2,
    "sm_margin": 0,
    "scale": 0.5,
}
Y, LSE = (np.asarray(x, np.float32) for x in attention(Q, Q, Q, scale=0.5))
FORWARD = [Y, LSE[..., None]]
SCRATCH = 2 * 16 * (8 + 2)  # of float32: B H Q (D + 2)


def gradients(scratch=SCRATCH, last=True):
    poisoned = [np.full_like(Q, np.nan) for _ in range(2 + last)]
    return [np.full((1, 1, 1, scratch), np.nan, np.float32), *poisoned]


def test_a_whole_backward_call(backward):
    out = gradients()
    call = Call([Q, Q, Q, Q, *FORWARD], out, GRADIENT_OPTIONS)
    assert call(backward) is None and not call.errors
    exact = attention_backward(Q, Q, Q, Q, scale=0.5)
    _, dk, dv, dq = out
    for got, truth in zip((dq, dk, dv), exact, strict=True):
        assert np.allclose(got, truth, atol=1e-5)


def test_a_backward_call_of_two_steps(backward):
    """Over the same keys twice: dq is the sum, in the scratch that both steps share."""
    first = gradients(last=False)
    options = {**GRADIENT_OPTIONS, "last": 0, "dlse": 1}
    assert Call([Q, Q, Q, Q, *FORWARD, np.ones_like(FORWARD[1])], first, options)(backward) is None
    last = gradients()
    last[0] = first[0]
    options = {**GRADIENT_OPTIONS, "first": 0}
    assert Call([Q, Q, Q, Q, first[0]], last, options)(backward) is None
    dq, dk, _ = attention_backward(Q, Q, Q, Q, dlse=np.ones_like(LSE), scale=0.5)
    assert np.allclose(last[3], 2 * dq, atol=1e-5) and np.allclose(last[1], dk, atol=1e-5)


@pytest.mark.parametrize(
    "change, code, message",
    [
        ({"kernel": 7}, 3, "kernel: got 7"),
        ({"kernel": 2}, 12, "sm80"),
        ({"sequence_dim": 3}, 3, "sequence_dim: got 3, must be 1 or 2"),
        ({"scale": float("inf")}, 3, "scale: got inf"),
        ({"causal": 1}, 3, "maps: got 4 dimensions, must have 1"),
        ({"dlse": 1}, 3, "operand 6 (dlse): got none"),
        ({"first": 0}, 3, "scratch: got separate memory for its result"),
        ({"last": 0}, 3, "call frame: got 4 results, must have 3"),
    ],
)
def test_refusals_of_the_backward(backward, change, code, message):
    call = Call([Q, Q, Q, Q, *FORWARD], gradients(), {**GRADIENT_OPTIONS, **change})
    assert call(backward) == 1
    ((got, text),) = call.errors
    assert got == code and message in text


@pytest.mark.parametrize(
    "at, array, message",
    [
        (3, Q[:, :1].copy(), "dy: got another shape or type, must have those of q"),
        (4, Q.astype(np.float64), "y: got another shape or type, must have those of q"),
        (5, LSE[..., None].astype(np.float64), "lse: got another shape or type, must be f32"),
        (
            -4,
            np.zeros((1, 1, 1, SCRATCH - 1), np.float32),
            "scratch: got 1276 bytes, must have 1280",
        ),
        (-3, Q[..., :4].copy(), "dk: got another shape or type, must have those of k"),
        (-2, Q.astype(np.float64), "dv: got another shape or type, must have those of dk"),
        (-1, Q[:, :1].copy(), "dq: got another shape or type, must have those of q"),
    ],
)
def test_gradients_that_do_not_belong_together(backward, at, array, message):
    operands, results = [Q, Q, Q, Q, *FORWARD], gradients()
    (operands if at >= 0 else results)[at] = array
    call = Call(operands, results, GRADIENT_OPTIONS)
    assert call(backward) == 1
    assert message in call.errors[0][1]


def test_dk_and_dv_of_a_type_that_nobody_sums_in(backward):
    results = gradients()
    results[1:3] = [Q.astype(np.float64), Q.astype(np.float64)]
    call = Call([Q, Q, Q, Q, *FORWARD], results, GRADIENT_OPTIONS)
    assert call(backward) == 1
    assert "kv_gradient_element: got 3, must be element" in call.errors[0][1]


def test_maps_of_another_type_are_refused(handler):
    wrong = np.zeros(16, np.float32)  # as many elements, of the same size
    call = Call([Q, Q, Q, wrong], outputs(), {**OPTIONS, "causal": 1})
    assert call(handler) == 1
    assert "maps: got 16 elements of XLA's type 11, must be 16 of its type 8" in call.errors[0][1]
