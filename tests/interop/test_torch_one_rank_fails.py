"""What fails on one rank before it sends: every rank raises at once, and the ring goes on."""

import pytest

from baracuda_kernels.errors import (
    BaracudaError,
    BufferTooSmallError,
    CommunicatorError,
    CudaError,
    InvalidProblemError,
    NcclError,
    NcclTimeoutError,
    WorkspaceTooSmallError,
)

pytestmark = pytest.mark.framework("torch")

ODD = 2
# The odd rank's error and its text; the others' error is the same, or a CommunicatorError.
CASES = {
    "a list as scale": ("InvalidProblemError", "scale: got [1.0], must be None or a float"),
    "a long text as scale": ("InvalidProblemError", "scale: got '\U0001f600"),
    "a list as is_causal": ("InvalidProblemError", "is_causal: got [], must be a bool"),
    "a list as sequence_layout": ("InvalidProblemError", "sequence_layout: got ['zigzag'], must be"),
    "sparse": ("UnsupportedError", "q: got layout torch.sparse_coo, must be a dense tensor"),
    "nested": ("UnsupportedError", "q: got a nested tensor, must be a dense tensor"),
    "out of memory": ("OutOfMemoryError", "CUDA out of memory"),
    "CUDA out of memory": ("CudaError", "cudaMalloc: out of memory"),
}


# In a mode, PyTorch's dispatcher makes the call, with types and words of its own.
@pytest.mark.parametrize("within", ["", "a mode"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("what", CASES)
def test_every_rank_raises_at_once(gloo_ranks, what, gradient, within):
    task = {"do": "one_fails", "what": what, "gradient": gradient, "within": within}
    name, text = CASES[what]
    for rank, answer in enumerate(gloo_ranks.run({**task, "odd_rank": ODD}, seconds=20)):
        assert answer["seconds"] < 10, answer
        if rank == ODD:
            assert answer["error"] == name and text in answer["message"], answer
            continue
        typed = name in ("InvalidProblemError", "UnsupportedError")
        assert answer["error"] == (name if typed else "CommunicatorError"), answer
        assert answer["message"].startswith(f"rank {ODD}: "), answer
        assert text in answer["message"], answer
        assert typed or name in answer["message"], answer
    for answer in gloo_ranks.run({**task, "odd_rank": None}):
        assert not answer["error"], answer


# What the odd rank raises before its backward sends anything.
IN_BACKWARD = {
    "changed": ("RuntimeError", "modified by an inplace operation"),
    "freed": ("RuntimeError", "Trying to backward through the graph a second time"),
    "a hook": ("ValueError", "a hook"),
    "a recomputation": ("ValueError", "a recomputation"),
    "a recomputation without memory": ("MemoryError", "a recomputation without memory"),
}


@pytest.mark.parametrize("what", IN_BACKWARD)
def test_every_rank_raises_in_backward_and_goes_on(gloo_ranks, what):
    """Else the next call of the odd rank would meet the backward in which the others wait."""
    name, text = IN_BACKWARD[what]
    task = {"do": "one_fails_in_backward", "what": what, "odd_rank": ODD}
    for rank, answer in enumerate(gloo_ranks.run(task, seconds=30)):
        assert answer["error"] == (name if rank == ODD else "CommunicatorError"), answer
        assert rank == ODD or answer["message"].startswith(f"rank {ODD}: "), answer
        assert text in answer["message"] and name in answer["error"] + answer["message"], answer
        assert answer["right"] and answer["seconds"] < 10, answer


# In compiled code an error that is raised while it is traced would be one of the compiler: the other
# ranks would go on, and their call would meet this rank's next one.
COMPILED = {
    "a dtype": ("InvalidProblemError", "q, k, v: got torch.float32, torch.float16 and torch.float32"),
    "integers": ("UnsupportedError", "q: got torch.int32, must be one of"),
    "three dimensions": ("InvalidProblemError", "q: got 3 dimensions, must have 4"),
    "another shape": ("InvalidProblemError", "v: got shape (2, 1, 8, 16)"),
    "a list as q": ("InvalidProblemError", "q: got list, must be a torch.Tensor"),
    "a word as scale": ("InvalidProblemError", "scale: got 'x', must be None or a float"),
    "a list as is_causal": ("InvalidProblemError", "is_causal: got [], must be a bool"),
    "a tensor_layout": ("InvalidProblemError", "tensor_layout: got 'bogus', must be"),
    "three dimensions of bshd": ("InvalidProblemError", "q: got 3 dimensions, must have 4"),
    "heads": ("InvalidProblemError", "key: got another number of heads, must be those of query"),
    "leading dimensions": ("InvalidProblemError", "key: got another shape, must have the leading"),
    "a dim of unshard": ("InvalidProblemError", "dim: got another number, must be in [-4, 4)"),
    "a word as dim of unshard": ("InvalidProblemError", "dim: got 'x', must be an integer"),
    "a layout of unshard": ("InvalidProblemError", "sequence_layout: got 'bogus', must be one of"),
    "a dtype in a context": ("InvalidProblemError", "q, k, v: got torch.float32, torch.float16"),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("what", COMPILED)
def test_every_rank_raises_in_compiled_code_and_goes_on(gloo_ranks, what, dynamic):
    name, text = COMPILED[what]
    task = {"do": "one_fails_compiled", "what": what, "dynamic": dynamic, "odd_rank": ODD}
    for rank, answer in enumerate(gloo_ranks.run(task, seconds=60)):
        assert answer["error"] == name and text in answer["message"], answer
        assert rank == ODD or answer["message"].startswith(f"rank {ODD}: "), answer
        assert answer["right"] and answer["seconds"] < 30, answer


def test_a_profiler_may_end_before_a_refusal_is_heard(gloo_ranks):
    task = {"do": "one_fails", "what": "sparse", "gradient": False, "within": "a profiler"}
    for _ in range(15):
        answers = gloo_ranks.run({**task, "odd_rank": ODD}, seconds=20)
        assert {answer["error"] for answer in answers} == {"UnsupportedError"}


@pytest.mark.parametrize("text", ["x" * 5000, "\U0001f600" * 700, "\x00" * 700, "\ud800" * 700, ""])
@pytest.mark.parametrize("nbytes", [100, 1024])
def test_a_refusal_fits_into_its_message(torch, text, nbytes):
    from baracuda_kernels.interop.torch import _refusal_message

    message = _refusal_message.encode(InvalidProblemError(text), nbytes)
    assert len(message) <= nbytes and (len(message) > nbytes - 24 or text[:600] in ("", "x" * 600))
    heard = _refusal_message.decode(3, message.ljust(nbytes))
    assert type(heard) is InvalidProblemError
    said = str(heard).removeprefix("rank 3: ")
    assert text.startswith(said) and bool(said) == bool(text)


@pytest.mark.parametrize(
    "error",
    [
        CudaError(2, "cudaMalloc", "out of memory"),
        NcclError(3, "ncclSend", 1),
        NcclTimeoutError("nobody came", 1),
        WorkspaceTooSmallError(8, 4),
        BufferTooSmallError(8, 4),
        MemoryError("no room"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_more_than_its_text_is_told(torch, error):
    from baracuda_kernels.interop.torch import _refusal_message

    told = _refusal_message.as_told(error)
    if isinstance(error, BaracudaError):  # as another version may send it
        assert type(_refusal_message.decode(1, _refusal_message.encode(error, 1024))) is (
            CommunicatorError
        )
    heard = _refusal_message.decode(1, _refusal_message.encode(told, 1024))
    assert type(heard) is CommunicatorError
    assert str(heard) == f"rank 1: ring_attention: {type(error).__name__}: {error}"
