"""transformers models on a sharded sequence, against the same model in one process."""

import pytest

pytestmark = [pytest.mark.framework("torch"), pytest.mark.framework("transformers")]

LAYOUTS = ["contiguous", "zigzag", "striped"]
TASK = {"do": "logits", "dtype": "float32", "by": "register", "use_cache": False}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3"])
def test_baracuda_ring(gloo_ranks, model, layout, use_cache):
    task = TASK | {"model": model, "layout": layout, "use_cache": use_cache}
    for answer in gloo_ranks.run(task, seconds=120):
        assert answer["off"] <= 1e-5, answer
        assert answer["cached_rows"] == (24 if use_cache else None)


@pytest.mark.parametrize(
    ("layout", "use_cache"),
    [("contiguous", False), ("contiguous", True), ("zigzag", True), ("striped", True)],
)
@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3"])
def test_context_parallel_around_an_unmodified_model(gloo_ranks, model, layout, use_cache):
    task = TASK | {"model": model, "layout": layout, "use_cache": use_cache}
    for answer in gloo_ranks.run(task | {"by": "context_parallel"}, seconds=120):
        assert answer["off"] <= 1e-5, answer


# The last rank's zigzag rows happen to follow each other, so it gets no mask and would wait.
@pytest.mark.parametrize(("layout", "ranks"), [("zigzag", [0, 1, 2]), ("striped", [0, 1, 2, 3])])
def test_the_mask_that_transformers_makes_of_permuted_positions(gloo_ranks, layout, ranks):
    task = TASK | {"do": "refused", "what": "mask within context_parallel", "layout": layout}
    for answer in gloo_ranks.run(task | {"by": "context_parallel"}, ranks=ranks):
        assert answer["error"] == "UnsupportedError", answer
        assert "use_cache=True" in answer["message"] and "baracuda_ring" in answer["message"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("padding", "attention_mask: hides rows"),
        ("another mask", "attention_mask: got a tensor of shape (1, 1, 24, 24), must be None"),
        ("gradient", "only the forward is built"),
        ("decoding", "decoding against a sharded cache"),
        ("dropout", "dropout: got 0.1"),
        ("sliding window", "sliding_window: got 8"),
    ],
)
def test_what_the_ring_cannot_serve(gloo_ranks, what, message):
    task = TASK | {"do": "refused", "what": what, "layout": "contiguous", "use_cache": True}
    # Padding lies on the last rank alone, and the others would wait for it: ask that rank.
    for answer in gloo_ranks.run(task, ranks=[3] if what == "padding" else None):
        assert answer["error"] == "UnsupportedError" and message in answer["message"], answer


def test_shards_of_two_lengths(gloo_ranks):
    task = TASK | {"do": "refused", "what": "shards of two lengths", "layout": "striped"}
    for answer in gloo_ranks.run(task):
        assert answer["error"] == "InvalidProblemError", answer
        assert "rank 2" in answer["message"] and "query_len" in answer["message"]


def test_register_checks_its_arguments(torch):
    from baracuda_kernels.errors import InvalidProblemError
    from baracuda_kernels.interop.transformers import register

    with pytest.raises(InvalidProblemError, match="group: got str"):
        register("0")
    with pytest.raises(InvalidProblemError, match="SequenceLayout: got 'spiral'"):
        register(sequence_layout="spiral")
