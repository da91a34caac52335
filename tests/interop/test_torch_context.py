"""Calls that ``context_parallel`` catches or refuses below PyTorch's function layer."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.context_forms import CAUGHT, REFUSED

from baracuda_kernels.errors import InvalidProblemError, UnsupportedError

pytestmark = [pytest.mark.framework("torch"), pytest.mark.filterwarnings("ignore:.*torch.jit")]

WITHOUT_GRADIENT = ("inference mode", "nn.MultiheadAttention, fast path")


@pytest.mark.parametrize("what", CAUGHT)
def test_caught(gloo_ranks, what):
    for answer in gloo_ranks.run({"do": "within", "what": what}, seconds=120):
        assert not answer["error"], answer
        assert answer["relative"] <= 4e-6, answer


@pytest.mark.parametrize("what", [w for w in CAUGHT if w not in WITHOUT_GRADIENT])
def test_gradients_of_what_is_caught(gloo_ranks, what):
    task = {"do": "within", "what": what, "gradient": True}
    for answer in gloo_ranks.run(task, seconds=120):
        assert answer["relative"] <= 4e-6, answer


@pytest.mark.parametrize("what", REFUSED)
def test_refused(gloo_ranks, what):
    for answer in gloo_ranks.run({"do": "within", "what": what}, seconds=120):
        assert REFUSED[what] in answer["message"], answer
        assert answer["error"] == "UnsupportedError", answer
        # Only TorchScript wraps the error.
        assert answer["typed"] == ("scripted" not in what and "traced" not in what), answer


def test_what_one_rank_refuses_ends_on_the_others(gloo_ranks):
    for what in ("a mask", "dropout", "a dtype", "a layout", "no tensor", "written out",
                 "a dimension of unshard", "a layout of unshard", "no tensor for unshard",
                 "a compiled mask", "compiled dropout"):  # fmt: skip
        answers = gloo_ranks.run({"do": "one_refuses", "what": what, "odd_rank": 2}, seconds=20)
        for rank, answer in enumerate(answers):
            assert answer["error"] == answers[2]["error"] != "", answer
            assert rank == 2 or answer["message"].startswith("rank 2: "), answer
    # The ring still works, and its ranks agree on the order of calls.
    for answer in gloo_ranks.run({"do": "within", "what": "sdpa"}):
        assert answer["relative"] <= 4e-6, answer


def test_a_rank_that_attends_while_others_gather(gloo_ranks):
    task = {"do": "one_refuses", "what": "another call than unshard", "odd_rank": 2}
    for answer in gloo_ranks.run(task, seconds=20):
        assert answer["error"] == "InvalidProblemError", answer


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_repeated_in_another_context(torch, one_rank, reentrant):
    from torch.utils.checkpoint import CheckpointError, checkpoint

    from baracuda_kernels.interop.torch import context_parallel, ring_attention

    sdpa = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(1, 2, 8, 16, requires_grad=True)

    def within(x):
        with context_parallel():
            return sdpa(x * 2, x, x)

    def direct(x):
        return ring_attention(x * 2, x, x)

    def bare(x):
        return sdpa(x * 2, x, x)

    for call, again in ((bare, "contiguous"), (bare, "zigzag"), (within, None), (direct, None)):
        q.grad = None
        with context_parallel(sequence_layout="zigzag"):
            y = checkpoint(call, q, use_reentrant=reentrant)
        with context_parallel(sequence_layout=again) if again else contextlib.nullcontext():
            if again == "contiguous":
                with pytest.raises((UnsupportedError, CheckpointError)):
                    y.sum().backward()
                continue
            y.sum().backward()
        (exact,) = torch.autograd.grad(bare(q).sum(), q)
        torch.testing.assert_close(q.grad, exact)


def test_nothing_is_left_behind(torch, one_rank):
    from baracuda_kernels.interop.torch import context_parallel

    functional = torch.nn.functional
    q = torch.randn(1, 2, 8, 16)
    with context_parallel(), pytest.raises(UnsupportedError, match="softmax"):
        functional.softmax(q @ q.transpose(2, 3), -1)
    functional.softmax(q @ q.transpose(2, 3), -1)
    with context_parallel():
        with context_parallel(sequence_layout="zigzag"):
            pass
        functional.scaled_dot_product_attention(q, q, q)
    q.requires_grad_()
    functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert q.grad is not None


@pytest.fixture
def caught_below(torch):
    """Whether attention below the function layer is caught now."""

    def caught():
        try:
            with torch._C.DisableTorchFunction():
                torch.softmax(torch.randn(1, 2, 8, 8), -1)
        except UnsupportedError:
            return True
        return False

    return caught


def test_one_context_that_is_entered_twice(one_rank, caught_below):
    from baracuda_kernels.interop.torch import context_parallel

    context = context_parallel()
    with context:
        with context:
            assert caught_below()
        assert caught_below()
    assert not caught_below()


def test_contexts_that_are_ended_in_another_order(one_rank, caught_below):
    from baracuda_kernels.interop.torch import _entered, context_parallel

    outer, inner = context_parallel(), context_parallel(sequence_layout="zigzag")
    ended = (None, None, None)
    for context in (outer, inner):
        context.__enter__()
    with pytest.raises(InvalidProblemError, match="not the innermost of this thread"):
        outer.__exit__(*ended)
    with ThreadPoolExecutor() as thread, pytest.raises(InvalidProblemError, match="of this thread"):
        thread.submit(inner.__exit__, *ended).result()
    assert caught_below() and _entered.entered() is inner
    for context in (inner, outer):
        context.__exit__(*ended)
    assert not caught_below() and _entered.entered() is None
    with pytest.raises(InvalidProblemError, match="not the innermost of this thread"):
        outer.__exit__(*ended)


def test_a_softmax_over_experts_is_not_attention(torch, one_rank):
    from baracuda_kernels.interop.torch import context_parallel

    with context_parallel():
        assert torch.softmax(torch.randn(2, 8, 4), -1).shape == (2, 8, 4)
        assert torch.softmax(torch.randn(8, 8), -1).shape == (8, 8)
        assert torch.nn.functional.log_softmax(torch.randn(2, 8, 32), -1).shape == (2, 8, 32)


def test_other_threads_are_left_alone(torch, one_rank):
    import threading

    from baracuda_kernels.interop.torch import context_parallel

    found = []

    def elsewhere():
        scores = torch.randn(1, 2, 8, 8)
        found.append(torch.softmax(scores, -1).shape)

    with context_parallel():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found == [(1, 2, 8, 8)]


@pytest.mark.parametrize("what", ["exported", "repeated"])
def test_code_that_was_compiled_in_another_context(torch, one_rank, what):
    """A compiler does not see that such attention depends on the context."""
    from torch.utils.checkpoint import checkpoint

    from baracuda_kernels.interop.torch import context_parallel

    class Layer(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x * 2, x, x)

    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    layer = Layer()
    if what == "exported":
        layer = torch.export.export(layer, (q,)).module()
    compiled = torch.compile(layer, backend="aot_eager")

    def run():
        y = compiled(q) if what == "exported" else checkpoint(compiled, q, use_reentrant=False)
        y.sum().backward()

    for layout in ("zigzag", "contiguous", "zigzag"):
        with context_parallel(sequence_layout=layout):
            if layout == "zigzag":
                run()
                continue
            with pytest.raises(UnsupportedError, match="compiled in a context_parallel of another"):
                run()
            torch.compiler.reset()
            run()
            torch.compiler.reset()


def test_threads_that_enter_their_first_contexts_at_once(torch, monkeypatch):
    import threading
    import time

    from baracuda_kernels.interop.torch import _below

    registered = []

    def register(*kernels):
        time.sleep(0.05)
        registered.append(kernels)
        _below._libraries.append(None)

    monkeypatch.setattr(_below, "_libraries", [])
    monkeypatch.setattr(_below, "_register", register)
    threads = [threading.Thread(target=_below.guard, args=(None, None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registered) == 1
