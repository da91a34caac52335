"""Recommendations of the performance model, and the command ``predict``."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.predict_cases import EVIDENCE, machine, problem

import baracuda_kernels as bk
from baracuda_kernels import predict
from baracuda_kernels._core import _info
from baracuda_kernels._core._nccl_options import DEFAULT_MAX_CTAS
from baracuda_kernels.cli import main
from baracuda_kernels.predict._units import duration, size

ROOT = Path(__file__).parent.parent.parent
LAYOUTS = ("contiguous", "zigzag", "striped")


# --- the advice ---------------------------------------------------------------------------------


def test_zigzag_is_advised_for_a_causal_ring_and_contiguous_for_a_full_one():
    m = predict.Machine(rates=predict.default_rates("sm80", "bf16", 128), link_gbps=400)
    p = problem(seq=2**20, ranks=64)
    causal = predict.compare(p, m)
    assert causal.recommendation.layout is bk.SequenceLayout.ZIGZAG
    assert causal.recommendation.ranks == 64 and "hidden" in causal.recommendation.reason
    full = predict.compare(dataclasses.replace(p, causal=False), m)
    assert full.recommendation.layout is bk.SequenceLayout.CONTIGUOUS
    only = predict.compare(p, m, ["striped"])
    assert only.recommendation.layout is bk.SequenceLayout.STRIPED and len(only.forecasts) == 1


def test_fewer_ranks_are_advised_where_the_link_is_too_slow():
    m = predict.Machine(rates=predict.default_rates("sm80", "bf16", 128), link_gbps=100)
    found = predict.compare(problem(seq=2**17, ranks=64), m)
    advice = found.recommendation
    chosen = [f for f in found.sweep if f.problem.ranks == advice.ranks]
    assert 1 < advice.ranks < 64 and "64 ranks would run at" in advice.reason
    assert max(f.efficiency for f in chosen) >= 0.8
    assert max(f.efficiency for f in found.forecasts) < 0.8
    assert predict.compare(found.problem, m, min_efficiency=0.01).recommendation.ranks > advice.ranks


def test_memory_is_minded():
    p = problem(seq=2**20, ranks=64)
    least = min(predict.rank_memory(p, in_place=x).total for x in (False, True)) / 2**30
    tight = predict.compare(p, machine(link_gbps=1.0, memory_gib=1.01 * least)).recommendation
    assert tight.fits and tight.ranks == 64 and "nothing that fits reaches" in tight.reason
    assert not tight.efficient and not tight.advised
    none = predict.compare(p, machine(memory_gib=0.99 * least)).recommendation
    assert not none.fits and none.ranks == 64 and "GiB" in none.reason and not none.advised


def test_bad_plans_are_typed_errors():
    for change in ({"layouts": []}, {"layouts": ["zigzag"] * 2}, {"min_efficiency": 0},
                   {"layouts": "zigzag"}, {"layouts": None}, {"min_efficiency": "0.5"}):  # fmt: skip
        with pytest.raises(bk.InvalidProblemError, match=f"^{next(iter(change))}: got"):
            predict.compare(problem(), machine(), **change)


def test_infinite_numbers_are_none_in_the_dict():
    found = predict.compare(problem(), machine(link_gbps=math.inf, memory_gib=math.inf)).to_dict()
    assert found["machine"]["link_gbps"] is None and found["machine"]["memory_gib"] is None
    json.dumps(found, allow_nan=False)


def test_many_ranks_take_no_time():
    start = time.monotonic()
    predict.compare(problem(seq=2**20, ranks=512), machine())
    assert time.monotonic() - start < 10


# --- the command --------------------------------------------------------------------------------

needs_cuda_build = pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)
GIVEN = ("--seq", "1M", "--ranks", "16", "--heads", "32", "--kv-heads", "8", "--head-dim", "128")
GIVEN = ("predict", *GIVEN, "--link-gbps", "400", "--causal")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def as_json(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2 and result.stdout == ""
    error = json.loads(result.stderr)["error"]
    text = invoke(*arguments)
    assert text.exit_code == 2 and "Traceback" not in text.stderr
    return error["type"], error["message"]


@needs_cuda_build
def test_the_commands_json():
    found = as_json(*GIVEN)
    assert set(found) == {
        *("family", "problem", "machine", "memory", "exchange", "layouts"),
        *("smallest_hiding_chunk", "sweep", "recommendation", "layers", "seconds_all_layers"),
        "training",
    }
    assert found["problem"]["seq"] == 2**20 and found["problem"]["chunk"] == 2**16
    assert set(found["memory"]) == {"staged", "in_place"}
    assert found["exchange"]["bytes_sent_per_rank"] == 15 * 2 * 8 * 2**16 * 128 * 2
    assert set(found["layouts"]) == set(LAYOUTS)
    zigzag = found["layouts"]["zigzag"]
    assert set(zigzag) == {
        *("seconds", "compute_seconds", "exposed_seconds", "efficiency", "balance"),
        *("tflops_per_gpu", "steps"),
    }
    assert len(zigzag["steps"]) == 16
    assert set(zigzag["steps"][0]) == {
        *("slowest", "mean", "fastest", "exchange", "exposed", "seconds"),
    }
    assert set(found["smallest_hiding_chunk"]) == {"closed_form", "closed_form_causal", *LAYOUTS}
    assert {row["ranks"] for row in found["sweep"]} == {1, 2, 4, 8, 16}
    assert found["recommendation"]["layout"] == "zigzag"
    one = as_json(*GIVEN, "--layout", "striped", "--link-gbps", "inf")
    assert set(one["layouts"]) == {"striped"} and one["machine"]["link_gbps"] is None


@needs_cuda_build
def test_the_commands_text():
    result = invoke(*GIVEN)
    assert result.exit_code == 0, result.output
    for word in ("scratch A", "in place", "zigzag", "balance", "recommended:", "performance.md"):
        assert word in result.stdout
    alone = invoke(*GIVEN, "--ranks", 1)
    assert alone.exit_code == 0 and "nothing to choose on one GPU: " in alone.stdout
    assert "recommended" not in alone.stdout


@needs_cuda_build
def test_one_layer_is_said_and_more_can_be_asked_for():
    one, many = as_json(*GIVEN), as_json(*GIVEN, "--layers", 32)
    assert one["layers"] == 1 and one["layouts"] == many["layouts"]
    for name, layout in one["layouts"].items():
        assert many["seconds_all_layers"][name] == pytest.approx(32 * layout["seconds"])
    assert invoke(*GIVEN).stdout.startswith("One attention layer, forward: 1048576 tokens")
    assert "32 layers in all" in invoke(*GIVEN, "--layers", 32).stdout


@needs_cuda_build
def test_a_training_step():
    forward, found = as_json(*GIVEN), as_json(*GIVEN, "--training")
    assert found["training"] and not forward["training"]
    for name, layout in found["layouts"].items():
        assert layout["forward"] == forward["layouts"][name]
        assert layout["seconds"] > 3 * forward["layouts"][name]["seconds"]
        assert found["seconds_all_layers"][name] == layout["seconds"]
    text = invoke(*GIVEN, "--training").stdout
    assert text.startswith("One attention layer, forward and backward: 1048576 tokens")
    for line in ("backward rates: docs/performance.md", "sums of dk, dv", "backward: all steps",
                 "comes home in", "recommended: zigzag"):  # fmt: skip
        assert line in " ".join(text.split()) or line in text, line
    given = as_json(*GIVEN, "--training", "--tflops", 400)["machine"]
    assert given["backward_rates"]["full"] == given["rates"]["full"]
    kind, message = refused(*GIVEN, "--training", "--dtype", "f16", "--head-dim", 40)
    assert kind == "UnsupportedError", message


@needs_cuda_build
def test_what_cannot_be_recommended_is_not():
    text = invoke(*GIVEN, "--memory-gib", 0.001).stdout
    assert "no recommendation; closest comes" in text and "recommended:" not in text
    found = as_json(*GIVEN, "--memory-gib", 0.001)["recommendation"]
    assert (found["fits"], found["advised"]) == (False, False)
    text = invoke(*GIVEN, "--link-gbps", 0.01).stdout
    assert ("no recommendation" in text) != ("recommended:" in text)


@needs_cuda_build
@pytest.mark.parametrize(
    "more",
    [(), ("--seq", "1G", "--ranks", 1024), ("--layers", 1000),
     ("--seq", "1G", "--ranks", 1024, "--layers", 1000, "--training")],
)  # fmt: skip
def test_lines_fit_80_characters(more):
    long = [x for x in invoke(*GIVEN, *more).stdout.splitlines() if len(x) > 80]
    assert not long


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (4.56e-5, "45.6 µs"), (0.461, "461 ms"), (0.99996, "1 s"), (5.5, "5.5 s"),
     (119, "119 s"), (600, "10 min"), (7e3, "117 min"), (9e4, "25 h"), (21 * 86400, "21 days"),
     (1e9, "31.7 years"), (1e-9, "0.001 µs"), (1e20, "3168808781403 years")],
)  # fmt: skip
def test_times_as_people_read_them(seconds, text):
    assert duration(seconds) == text


def test_sizes_as_people_read_them():
    assert [size(x) for x in (0, 1024, 34078720, 2**30, 5 * 2**40)] == [
        "0", "1 KiB", "32.5 MiB", "1 GiB", "5 TiB"]  # fmt: skip


@needs_cuda_build
@pytest.mark.parametrize("text, size", [("4096", 4096), ("128k", 2**17), ("1.5M", 3 * 2**19)])
def test_sizes(text, size):
    assert as_json(*GIVEN, "--seq", text, "--tflops", 400)["problem"]["seq"] == size


@pytest.mark.parametrize("text", ["", "k", "1.0001k", "many", "-4k", "nan", "infM", "0"])
def test_bad_sizes(text):
    assert refused(*GIVEN, "--seq", text)[0] == "BadParameter"


@needs_cuda_build
def test_measured_numbers_are_used(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(EVIDENCE))
    # The file's rows are of sm80, the family of an A100.
    a100 = ("--arch", "sm_80", "--sms", "108", "--memory-gib", "40")
    found = as_json(*GIVEN, *a100, "--measured", path)
    assert found["family"] == "sm80"
    assert (found["machine"]["sms"], found["machine"]["memory_gib"]) == (108, 40)
    assert any("Some Card" in source for source in found["machine"]["rates"]["sources"])
    doubled = as_json(*GIVEN, "--tflops", 500)["layouts"]["zigzag"]["seconds"]
    assert doubled < as_json(*GIVEN, "--tflops", 250)["layouts"]["zigzag"]["seconds"]


@needs_cuda_build
def test_no_card_stands_in_for_another():
    """For a GPU without measured figures, the user gives all figures, or the error names them."""
    for arch in ("sm_80", "sm_86", "sm_100"):
        kind, message = refused(*GIVEN, "--arch", arch)
        assert kind == "UnsupportedError" and f"got {arch}," in message and "(sm_90)" in message
        assert all(f"--{name}" in message for name in ("tflops", "measured", "sms", "memory-gib"))
        kind, message = refused(*GIVEN, "--arch", arch, "--tflops", 250, "--sms", 108)
        assert kind == "UnsupportedError" and message.endswith("or give --memory-gib")
        own = ("--arch", arch, "--tflops", 250, "--sms", 108, "--memory-gib", 40)
        rates = as_json(*GIVEN, *own)["machine"]["rates"]
        assert rates["full"] == [[1.0, 250.0]] and "given" in rates["sources"][0]
    known = as_json(*GIVEN)["machine"]
    card = predict.find_card("sm_90")
    assert (known["sms"], known["memory_gib"]) == (card.sms, card.memory_gib)


def test_the_exchange_takes_the_librarys_default_of_sms():
    rates = predict.ComputeRates.constant(400)
    option = next(o for o in main.commands["predict"].params if o.name == "sm_margin")
    assert f"default: {DEFAULT_MAX_CTAS}; by peer 0" in option.help
    assert predict.Machine(rates=rates, link_gbps=400).sm_margin == DEFAULT_MAX_CTAS


def test_by_peer_no_sms_are_left_to_the_exchange():
    def forecast(**how):
        rates = predict.ComputeRates.constant(400)
        m = predict.Machine(rates=rates, link_gbps=math.inf, **how)
        return predict.forecast(problem(), m, "zigzag")

    by_peer, by_nccl = forecast(exchange="peer"), forecast(exchange="nccl")
    none_left = forecast(exchange="nccl", sm_margin=0, latency_us=20.0)
    assert by_peer.seconds == none_left.seconds < by_nccl.seconds
    assert by_peer.steps[0].exchange == pytest.approx(20e-6)
    given = forecast(exchange="peer", latency_us=3.0)
    assert given.steps[0].exchange == pytest.approx(3e-6)
    for wrong in ({"exchange": "mpi"}, {"exchange": "peer", "sm_margin": 4}):
        with pytest.raises(bk.InvalidProblemError, match=r"exchange: got|sm_margin: got 4"):
            forecast(**wrong)


@needs_cuda_build
def test_the_command_knows_both_exchanges():
    by_nccl, by_peer = as_json(*GIVEN), as_json(*GIVEN, "--exchange", "peer")
    assert by_nccl["machine"]["exchange"] == "nccl" and by_peer["machine"]["sm_margin"] == 0
    seconds = [x["layouts"]["zigzag"]["seconds"] for x in (by_peer, by_nccl)]
    assert seconds[0] < seconds[1]
    assert "exchange by NCCL: " in invoke(*GIVEN).stdout
    assert "exchange by copy engine: " in invoke(*GIVEN, "--exchange", "peer").stdout
    kind, message = refused(*GIVEN, "--exchange", "peer", "--sm-margin", 4)
    assert kind == "InvalidProblemError" and "sm_margin: got 4" in message


@needs_cuda_build
def test_refusals_are_typed(tmp_path):
    kind, message = refused(*GIVEN, "--ranks", 48)
    assert kind == "InvalidProblemError" and "1048560 and 1048608" in message
    assert refused(*GIVEN, "--measured", tmp_path / "none.json")[0] == "FileProblemError"
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    assert refused(*GIVEN, "--measured", bad)[0] == "FileProblemError"
    bad.write_text("[]")
    assert refused(*GIVEN, "--measured", bad)[0] == "InvalidProblemError"
    assert refused(*GIVEN, "--measured", bad, "--tflops", 3)[0] == "UsageError"
    bad.write_text("[" * 100_000 + "]" * 100_000)
    assert refused(*GIVEN, "--measured", bad)[0] == "FileProblemError"
    for tflops in (-1, 0, "1e308", "1e-308", "nan", "inf"):
        assert refused(*GIVEN, "--tflops", tflops)[0] == "InvalidProblemError"
    for option in ("--latency-us", "--memory-gib", "--link-gbps"):
        assert invoke(*GIVEN, option, "1e308").exit_code == 0
        assert refused(*GIVEN, option, "nan")[0] == "InvalidProblemError"
    assert refused(*GIVEN, "--head-dim", 512)[0] == "UnsupportedError"
    kind, message = refused(*GIVEN, "--arch", "host")
    assert kind == "UnsupportedError" and "host" in message
    assert refused(*GIVEN, "--plot", tmp_path / "out.gif")[0] == "FileProblemError"
    assert refused(*GIVEN, "--plot", tmp_path / "no" / "out.png")[0] == "FileProblemError"


def test_a_build_without_kernels_says_so_once(monkeypatch):
    monkeypatch.setattr(_info, "build_info", lambda: {"cuda_built": False})
    kind, message = refused(*GIVEN)
    assert kind == "UnsupportedError" and message.count("BARACUDA_CUDA=OFF") == 1


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    kind, message = refused(*GIVEN, "--plot", tmp_path / "out.png")
    assert kind == "UnsupportedError" and "pip install matplotlib" in message
    assert "'.[bench]'" in message


@needs_cuda_build
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"out.{suffix}"
    found = as_json(*GIVEN, "--plot", path)
    assert found["plot"] == str(path)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


@needs_cuda_build
def test_the_examples_in_the_docs_are_the_commands_output():
    page = (ROOT / "docs" / "predict.md").read_text()
    blocks = [x.split("```")[0] for x in page.split("```console\n$ baracuda-kernels ")[1:]]
    assert len(blocks) == 2 and "--training" in blocks[1]
    for block in blocks:
        command, shown = block.split("\n", 1)
        assert invoke(*command.split()).stdout == shown
