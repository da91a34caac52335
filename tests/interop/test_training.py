"""Training over rings: BatchSharder's batches and loss, against transformers on one rank."""

import pytest

pytestmark = [pytest.mark.framework("torch"), pytest.mark.framework("transformers")]

LAYOUTS = ["contiguous", "zigzag", "striped"]
TASK = {"do": "sharded_loss", "model": "llama", "layout": "zigzag", "cp": 2, "rows": 44}


def run(ranks, task):
    return ranks.run(task, seconds=240)  # the first one imports transformers


@pytest.mark.parametrize("cp", [1, 2, 4])
@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma", "gemma3"])
def test_the_loss_of_a_step_is_that_of_one_rank(gloo_ranks, model, cp):
    """Over ring, data-parallel ranks and accumulated batches, right padding among them."""
    for answer in run(gloo_ranks, TASK | {"model": model, "cp": cp}):
        assert answer["loss"] == pytest.approx(answer["exact"], rel=2e-6), answer
        assert answer["count"] == answer["targets"]
        assert answer["rows"] == 44 // cp


@pytest.mark.parametrize("layout", LAYOUTS)
def test_within_context_parallel(gloo_ranks, layout):
    for answer in run(gloo_ranks, TASK | {"layout": layout, "by": "context_parallel"}):
        assert answer["loss"] == pytest.approx(answer["exact"], rel=2e-6), answer
        assert answer["rows"] == 22


@pytest.mark.parametrize("cp", [2, 4])
@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma", "gemma3"])
def test_every_gradient_is_that_of_one_rank(gloo_ranks, model, cp):
    task = TASK | {"do": "model_gradients", "model": model, "cp": cp, "rows": 42}
    for answer in run(gloo_ranks, task):
        assert answer["loss"] == pytest.approx(answer["exact"], rel=2e-6), answer
        assert max(answer["off"].values()) <= 1e-5, answer


@pytest.mark.parametrize(("cp", "layout"), [(1, "contiguous"), (2, "zigzag"), (4, "striped")])
def test_clipped_steps_of_accumulated_batches_are_those_of_one_rank(gloo_ranks, cp, layout):
    """Ranks of a mesh data-parallel x ring, lengths and numbers of targets that differ."""
    task = TASK | {"do": "optimizer_steps", "cp": cp, "layout": layout, "steps": 3, "clip": 0.2}
    for answer in run(gloo_ranks, task):
        assert all(exact > 0.2 for _, exact in answer["norms"]), answer
        for found, exact in (*answer["losses"], *answer["norms"]):
            assert found == pytest.approx(exact, rel=1e-5), answer
        assert answer["off"] <= 1e-5, answer


@pytest.mark.parametrize("rows", [41, 42])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_length_that_the_ring_cannot_cut_is_filled_up(gloo_ranks, layout, rows):
    for answer in run(gloo_ranks, TASK | {"layout": layout, "cp": 4, "rows": rows}):
        assert answer["loss"] == pytest.approx(answer["exact"], rel=2e-6), answer
        assert answer["count"] == answer["targets"]
        assert answer["rows"] == 11


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_ranks_batch_for_all(gloo_ranks, layout):
    for answer in run(gloo_ranks, TASK | {"do": "broadcast_batch", "layout": layout}):
        assert answer == {"same": True, "positions": True}


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("packed positions", "UnsupportedError", "position_ids: got 0 for row 12, must be 12"),
        ("cu_seq_lens", "UnsupportedError", "cu_seq_lens_q: got a value"),
        ("left padding", "UnsupportedError", "attention_mask: got zeros before rows"),
        ("a mask of packed sequences", "UnsupportedError", "attention_mask: got numbers besides"),
        ("targets that the mask hides", "UnsupportedError", "labels: got a target in a row that"),
        ("an unknown tensor", "UnsupportedError", "batch: got the entry token_weights"),
        ("a window", "UnsupportedError", "config.sliding_window: got 8"),
        ("no sequences", "InvalidProblemError", "input_ids: got shape (0, 24), must have"),
        ("a target beyond the vocabulary", "InvalidProblemError", "labels: got 61, must be"),
        ("a target below the vocabulary", "InvalidProblemError", "labels: got -1, must be"),
        ("a token beyond the vocabulary", "InvalidProblemError", "input_ids: got 61, must be"),
        ("tokens that are no integers", "InvalidProblemError", "input_ids: got torch.bool"),
        ("a sparse tensor on one rank", "UnsupportedError", "labels: got layout torch.sparse_coo"),
        ("no values on one rank", "InvalidProblemError", "labels: got a tensor on meta"),
        ("a gradient that broadcast would lose", "UnsupportedError", "inputs_embeds: got a tensor"),
        ("a batch that cannot be sent", "InvalidProblemError", "batch: got dict_keyiterator, must"),
        ("a worker of a DataLoader", "UnsupportedError", "shard: got a call in a worker of a Data"),
        ("lists", "InvalidProblemError", "input_ids: got list, must be a torch.Tensor"),
        ("another batch on one rank", "InvalidProblemError", "got input_ids of int64 (2, 24)"),
        ("another length on one rank", "InvalidProblemError", "int64 (2, 20) on rank 1"),
        ("a length that does not divide", "InvalidProblemError", "batch: got 23 rows, must be"),
        ("no room for padding", "InvalidProblemError", "config.max_position_embeddings, 23"),
        ("no data group", "InvalidProblemError", "data_group: got None for a ring of 2 of 4"),
        ("a data group within the ring", "InvalidProblemError", "data_group: got the ranks ["),
        ("a data group with a ring", "InvalidProblemError", "data_group: got "),
        ("data groups of two sizes in a ring", "InvalidProblemError", "ring and 1 on rank 1, must"),
        ("rings of two sizes in a data group", "InvalidProblemError", "got a ring of 2 ranks on"),
        (
            "a model without a ring",
            "InvalidProblemError",
            "model: got attn_implementation 'sdpa'",
        ),
        ("no labels", "InvalidProblemError", "must have shift_labels"),
        ("rows of another part", "InvalidProblemError", "outputs: got logits of shape (2, 3, 61)"),
    ],
)
def test_what_cannot_be_cut_is_refused_on_every_rank(gloo_ranks, what, error, message):
    for answer in run(gloo_ranks, TASK | {"do": "refused_batch", "what": what}):
        assert answer["error"] == error and message in answer["message"], answer


def test_an_error_of_one_rank_that_is_not_the_librarys(gloo_ranks):
    task = TASK | {"do": "refused_batch", "what": "a batch that cannot be read on one rank"}
    answers = run(gloo_ranks, task)
    assert answers.pop(1) == {"error": "OSError", "message": "the file has gone"}
    for answer in answers:
        assert answer["error"] == "CommunicatorError", answer
        assert "OSError: the file has gone" in answer["message"], answer


def sizes(**options):
    return {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32,
            "num_attention_heads": 2, "attn_implementation": "baracuda_ring", **options}  # fmt: skip


def test_models_that_are_not_causal_or_add_a_loss(torch, one_rank):
    import transformers

    from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
    from baracuda_kernels.interop.transformers import BatchSharder, register

    register()
    with pytest.raises(InvalidProblemError, match="model: got Linear"):
        BatchSharder(torch.nn.Linear(2, 2))
    masked = transformers.BertForMaskedLM(transformers.BertConfig(**sizes()))
    with pytest.raises(UnsupportedError, match="loss_type: got 'ForMaskedLM', must be 'ForCausalLM'"):
        BatchSharder(masked)
    encoder = transformers.BertLMHeadModel(transformers.BertConfig(**sizes()))
    with pytest.raises(
        UnsupportedError, match=r"bert\.encoder.*: got attention that is not causal"
    ):
        BatchSharder(encoder)
    both_ways = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(is_causal=False)))
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM.config.is_causal: got False"):
        BatchSharder(both_ways)
    tokens = transformers.LlamaForTokenClassification(transformers.LlamaConfig(**sizes()))
    with pytest.raises(UnsupportedError, match="loss_type: got 'ForTokenClassification', must be"):
        BatchSharder(tokens)
    config = transformers.MixtralConfig(**sizes(num_key_value_heads=2, output_router_logits=True))
    with pytest.raises(UnsupportedError, match="config.output_router_logits: got True"):
        BatchSharder(transformers.MixtralForCausalLM(config))
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes()))
    with pytest.raises(InvalidProblemError, match="gradients: got 'max'"):
        BatchSharder(llama, gradients="max")
    llama.loss_type = "ForConditionalGeneration"  # of the text of a model with images
    BatchSharder(llama)
    for name, wrong in (("pad", "no"), ("broadcast", 1), ("ignore_index", "x")):
        with pytest.raises(InvalidProblemError, match=f"^{name}: got {wrong!r}, must be"):
            BatchSharder(llama, **{name: wrong})


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
          "factor": 2.0, "original_max_position_embeddings": 32}, 32),
    ],
)  # fmt: skip
def test_rotary_embeddings_that_change_with_a_ranks_positions(torch, rope, limit):
    import transformers

    from baracuda_kernels.errors import UnsupportedError
    from baracuda_kernels.interop.transformers import check, register

    register()
    options = sizes(max_position_embeddings=64)
    options["rope_scaling"] = {"rope_theta": 10000.0, **rope}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    check(model, limit)
    with pytest.raises(UnsupportedError, match=f"{rope['rope_type']}.*at most {limit}"):
        check(model, limit + 1)


@pytest.mark.framework("accelerate")
def test_trainers_steps_are_those_of_one_rank(gloo_ranks):
    """Accumulated, clipped, with numbers of targets that differ; and its evaluation afterwards."""
    task = TASK | {"do": "trainer_steps", "cp": 2, "steps": 3}
    for answer in run(gloo_ranks, task):
        assert len(answer["losses"]) == 3
        for found, exact in (*answer["losses"], *answer["norms"], answer["evaluated"]):
            assert found == pytest.approx(exact, rel=2e-6), answer
        assert answer["off"] <= 1e-5, answer


@pytest.mark.framework("accelerate")
@pytest.mark.parametrize("cp", [2, 4])
def test_trainers_evaluation_is_that_of_one_rank(gloo_ranks, cp):
    for answer in run(gloo_ranks, TASK | {"do": "evaluated", "cp": cp}):
        found, exact = answer["evaluated"]
        assert found == pytest.approx(exact, rel=2e-6), answer


@pytest.mark.framework("accelerate")
@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("metrics", "UnsupportedError", "trainer.compute_metrics: got a value"),
        ("a loss", "UnsupportedError", "trainer.compute_loss_func: got a value"),
        ("a method", "UnsupportedError", "trainer.compute_loss: got another method"),
        ("smoothing", "UnsupportedError", "trainer.label_smoothing_factor: got a value"),
        ("noise", "UnsupportedError", "trainer.neftune_noise_alpha: got a value"),
        ("uneven batches", "UnsupportedError", "trainer.even_batches: got a value"),
        ("predict", "UnsupportedError", "predict: got a ring, must be one rank"),
        ("another model", "InvalidProblemError", "trainer: got one of another model"),
        ("no trainer", "InvalidProblemError", "trainer: got object, must be a Trainer"),
    ],
)
def test_what_trainer_cannot_do_over_a_ring(gloo_ranks, what, error, message):
    for answer in run(gloo_ranks, TASK | {"do": "refused_trainer", "what": what}):
        assert answer["error"] == error and message in answer["message"], answer
