"""Views of JAX arrays: what has no memory, or none any more."""

import numpy as np
import pytest

import baracuda_kernels as bk

pytestmark = pytest.mark.framework("jax")


def test_arrays_are_read_in_place(jax):
    x = jax.numpy.arange(6.0).reshape(2, 3)
    assert np.array_equal(np.asarray(bk.TensorRef(x)), np.asarray(x))


def test_arrays_are_not_written(jax):
    x = np.zeros((1, 1, 4, 8), np.float32)
    y = jax.numpy.zeros(x.shape)
    with pytest.raises(bk.InvalidProblemError, match="^tensor: got read-only memory"):
        bk.TensorMut(y)
    stream = bk.Stream.host()
    plan = bk.FlashSdpaPlan.select(stream, bk.FlashSdpaDescriptor(1, 1, 4, 4, 8, element="F32"))
    with pytest.raises(bk.InvalidProblemError, match="^y: got read-only memory, must be writable"):
        plan.run(stream, bk.FlashSdpaArgs(q=x, k=x, v=x, y=y))
    plan.run(stream, bk.FlashSdpaArgs(q=jax.numpy.asarray(x), k=x, v=x, y=np.array(y)))


def test_a_traced_value(jax):
    def view(x):
        with pytest.raises(bk.InvalidProblemError, match="^tensor: got .*Tracer"):
            bk.TensorRef(x)
        return x

    jax.jit(view)(jax.numpy.ones(3))


def test_an_array_that_was_deleted(jax):
    x = jax.numpy.ones(3)
    x.delete()
    with pytest.raises(bk.InvalidProblemError, match="^k: .*ArrayImpl"):
        bk.FlashSdpaArgs(q=np.zeros(3), k=x, v=np.zeros(3), y=np.zeros(3))
