"""The XLA handlers as XLA calls them, on call frames made by hand: versions, sizes, refusals.

No JAX: the C ABI alone, as its header documents it.
"""

import ctypes
from ctypes import addressof

import numpy as np
import pytest
from helpers import xla_frames
from helpers.oracle import attention
from helpers.xla_frames import Call, Extension, Metadata


@pytest.fixture(scope="module")
def handler():
    return xla_frames.handler("baracuda_xla_attention_host")


@pytest.mark.parametrize("theirs, answer", [(1, 1), (3, 3), (9, 3)])
def test_the_version_it_was_written_to(handler, theirs, answer):
    """Never newer than the runtime's own, never newer than what it was written to."""
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
        ({"kernel": 7}, 3, "kernel is 7"),
        ({"sequence_dim": 3}, 3, "sequence_dim is 3: must be 1 or 2"),
        ({"scale": 1}, 3, "attribute scale is missing or no 64-bit float"),
        ({"scale": float("inf")}, 3, "scale is inf"),
        ({"causal": 1}, 3, "operand 3 (maps) is missing"),
        ({"first": 0}, 3, "operand 3 (state) is missing"),
        ({"last": 0}, 3, "state has 1024 bytes: must have 1280"),
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
        ([Q, Q], outputs(), "operand 2 (v) is missing"),
        ([Q, Q, Q, Q], outputs(), "4 operands are given: must be 3"),
        ([Q, Q, Q[:, :1].copy()], outputs(), "v must have the shape and type of k"),
        ([Q, Q[..., :4].copy(), Q[..., :4].copy()], outputs(), "head_dim and type of q"),
        ([Q.astype(np.int64)] * 3, outputs(), "q has XLA data type 5"),
        ([Q[0], Q, Q], outputs(), "q has 3 dimensions: must have 4"),
        ([Q, Q, Q], outputs()[:1], "result 1 (lse) is missing"),
        ([Q, Q, Q], [Q[:, :1].copy(), outputs()[1]], "y must have the shape and type of q"),
        ([Q, Q, Q], [outputs()[0], Q], "lse must be f32 [B, H, Q]"),
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
    assert call(handler) == 1 and "its result must be its operand's memory" in call.errors[0][1]


def test_a_frame_of_an_older_layout(handler):
    call = Call([Q, Q, Q], outputs(), OPTIONS)
    call.frame.struct_size -= 8
    assert call(handler) == 1
    assert call.errors[0][0] == 12 and "call frame has" in call.errors[0][1]
