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


# Without a cache transformers takes permuted positions for packed sequences and makes a mask.
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3"])
def test_context_parallel_around_an_unmodified_model(gloo_ranks, model, layout, use_cache):
    task = TASK | {"model": model, "layout": layout, "use_cache": use_cache}
    for answer in gloo_ranks.run(task | {"by": "context_parallel"}, seconds=120):
        assert answer["off"] <= 1e-5, answer


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("padding", "attention_mask: got one that hides rows"),
        ("another mask", "attention_mask: got a tensor of shape (1, 1, 24, 24), must be None"),
        ("decoding", "decoding against a sharded cache"),
        ("dropout", "dropout: got 0.1"),
        ("sliding window", "config.sliding_window: got 8, must be at least"),
        ("chunked layers", "config.attention_chunk_size: got 8, must be at least"),
        ("a recurrent hybrid", "must be attention: another layer would mix"),
        ("code of its own", "the code of the model does not look up the name"),
        ("no position_ids", "position_ids: got None"),
        ("labels", "labels: got a tensor"),
        ("spans", "start_positions: got a tensor"),
        ("a pooled row", "CLIPTextModel.pooler_output: got a tensor"),
        ("routers", "MixtralForCausalLM.aux_loss: got a loss of the routers"),
        ("a skipped layer", "got 1 calls of the ring, must be one for each of its 2 layers"),
        ("packed by lengths", "cu_seq_lens_q: got a value"),
        ("generate", "generate: got a ring of"),
    ],
)
@pytest.mark.parametrize("by", ["register", "context_parallel"])
def test_what_the_ring_cannot_serve(gloo_ranks, what, message, by):
    if (what, by) == ("code of its own", "context_parallel"):
        message = "attn_implementation: got 'eager' for"
    task = TASK | {"do": "refused", "what": what, "layout": "contiguous", "use_cache": True}
    # Some of it is on one rank only. The others wait for that rank, and get its error at once.
    for answer in gloo_ranks.run(task | {"by": by}, seconds=30):
        assert answer["error"] == "UnsupportedError" and message in answer["message"], answer


@pytest.mark.parametrize(
    ("by", "what", "message"),
    [
        ("register", "labels, compiled", "labels: got a tensor"),
        ("context_parallel", "no position_ids, compiled", "position_ids: got None"),
    ],
)
def test_what_compiled_code_cannot_serve(gloo_ranks, by, what, message):
    task = TASK | {"do": "refused", "what": what, "layout": "contiguous", "by": by}
    for answer in gloo_ranks.run(task, seconds=120):
        assert answer["error"] == "UnsupportedError" and message in answer["message"], answer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["packed positions", "positions of another layout", "local"])
@pytest.mark.parametrize("by", ["register", "context_parallel"])
def test_positions_that_are_not_those_of_the_rows(gloo_ranks, what, layout, by):
    task = TASK | {"do": "refused", "what": what, "layout": layout, "by": by}
    for answer in gloo_ranks.run(task, seconds=30):
        assert answer["error"] == "InvalidProblemError", answer
        assert "position_ids: got " in answer["message"], answer


@pytest.mark.parametrize("by", ["register", "context_parallel"])
def test_a_window_as_long_as_the_sequence_is_none(gloo_ranks, by):
    task = TASK | {"model": "qwen2-long-window", "layout": "contiguous", "by": by}
    for answer in gloo_ranks.run(task, seconds=30):
        assert answer["off"] <= 1e-5, answer


@pytest.mark.parametrize("by", ["register", "context_parallel"])
def test_autocast(gloo_ranks, by):
    task = TASK | {"model": "qwen3", "layout": "zigzag", "by": by, "autocast": True}
    for answer in gloo_ranks.run(task, seconds=30):
        assert answer["off"] <= 3e-2, answer


@pytest.mark.parametrize("by", ["register", "context_parallel"])
def test_compiled_layers(gloo_ranks, by):
    task = TASK | {"model": "llama", "layout": "zigzag", "by": by, "compiled": True}
    for answer in gloo_ranks.run(task, seconds=120):
        assert answer["off"] <= 1e-5, answer


def test_check_names_the_model(torch):
    import transformers

    from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
    from baracuda_kernels.interop.transformers import check, register

    register()
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32,
             "num_attention_heads": 2, "attn_implementation": "baracuda_ring"}  # fmt: skip
    check(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)))
    windowed = transformers.MistralForCausalLM(
        transformers.MistralConfig(**sizes, num_key_value_heads=2, sliding_window=64)
    )
    check(windowed, 64)
    with pytest.raises(UnsupportedError, match="MistralForCausalLM.config.sliding_window: got 64"):
        check(windowed, 65)
    for wrong in (-1, "64", 64.0):
        with pytest.raises(InvalidProblemError, match="sequence_length: got .*, must be an integer"):
            check(windowed, wrong)
    tuned = transformers.Llama4TextConfig(
        **sizes, num_key_value_heads=2, head_dim=16, num_local_experts=2, pad_token_id=0,
        layer_types=["full_attention"], no_rope_layers=[0], floor_scale=16,
    )  # fmt: skip
    check(transformers.Llama4ForCausalLM(tuned), 15)
    with pytest.raises(UnsupportedError, match=r"self_attn: got .* for 16 rows, must be for fewer than 16"):
        check(transformers.Llama4ForCausalLM(tuned), 16)
    classes = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes))
    with pytest.raises(
        UnsupportedError, match="SequenceClassification: got a head that reads one row"
    ):
        check(classes)
    with pytest.raises(InvalidProblemError, match="model: got Linear"):
        check(torch.nn.Linear(2, 2))


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
    with pytest.raises(InvalidProblemError, match="sequence_layout: got 'spiral'"):
        register(sequence_layout="spiral")
    with pytest.raises(InvalidProblemError, match="name: got 3, must be a str"):
        register(name=3)


def test_the_host_compares_positions_until_they_are_right(torch, one_rank, monkeypatch):
    """On CUDA: a later assertion of the device would end the process's CUDA context."""
    from baracuda_kernels.errors import InvalidProblemError
    from baracuda_kernels.interop.transformers import _attention

    class OnCuda(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ring = _attention.Ring("", "CONTIGUOUS")
    right = torch.arange(7).as_subclass(OnCuda)
    for _ in range(3):
        with pytest.raises(InvalidProblemError, match="position_ids: got 1 for row 0 of 7, must be 0"):
            _attention.compare_positions(right + 1, 7, ring)
    _attention.compare_positions(right, 7, ring)
    # From now on the device compares; here PyTorch's assertion on the CPU stands in for it.
    with pytest.raises(RuntimeError, match="position_ids: got others"):
        _attention.compare_positions(right + 1, 7, ring)
