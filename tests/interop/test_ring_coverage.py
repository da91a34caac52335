"""The page of what context_parallel catches: made of its data, and a part of the data tried again."""

import json

import pytest
from helpers.rank_pool import RankPool
from helpers.ring_coverage import DATA, PAGE, WAYS, WORKER, render, try_form, try_model

pytestmark = [pytest.mark.framework("torch"), pytest.mark.framework("transformers")]

# Of each kind: served, windows, hybrids, own code, no positions, poolers, sinks, soft caps.
AGAIN = ["llama", "bert", "roberta", "gpt2", "opt", "mistral", "gemma2", "gpt_oss", "llama4_text",
         "falcon", "bloom", "mpt", "gpt_neo", "xglm", "mamba", "qwen3_next", "lfm2", "mobilebert",
         "bart"]  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return json.loads(DATA.read_text())


@pytest.fixture(scope="module")
def two_ranks(torch):
    ranks = RankPool(2, WORKER, backend="gloo")
    yield ranks
    ranks.close(cleanly=True)


def test_the_page_is_made_of_the_data(data):
    assert PAGE.read_text() == render(data), "run tests/helpers/ring_coverage.py --page"


def test_no_row_is_wrong(data):
    found = [*data["forms"], *(row[way] for row in data["models"] for way in WAYS)]
    assert {row["is"] for row in found} == {"right", "refused"}
    assert len({row["type"] for row in data["models"]}) >= 60
    assert sum(row["context_parallel"]["is"] == "right" for row in data["models"]) >= 60


@pytest.mark.parametrize("model_type", AGAIN)
def test_models_again(two_ranks, data, model_type):
    import transformers

    for row in try_model(two_ranks, model_type):
        (kept,) = (one for one in data["models"] if one["name"] == row["name"])
        if transformers.__version__ == data["transformers"]:
            assert row == kept
        for way in WAYS:
            assert row[way]["is"] in ("right", "refused", "not built"), row


def test_forms_again(two_ranks, data):
    for row in data["forms"][::4]:
        assert try_form(two_ranks, row["name"]) == row
