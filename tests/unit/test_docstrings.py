"""The API reference is complete: names, parameters, defaults and errors of all public objects."""

import importlib
import re

import pytest
from helpers.pages import ROOT
from helpers.reference import public

import baracuda_kernels as bk

EVERYTHING = {described.name: described for described in public()}
CALLS = [d for d in EVERYTHING.values() if d.kind != "property" and d.parameters]
# Objects that only the library makes or calls refuse nothing: results, errors, a protocol.
MADE_HERE = {
    *("registry.Architecture", "registry.Candidate", "registry.Explanation"),
    *("registry.ProblemOption", "predict.Card", "predict.RankMemory", "predict.Recommendation"),
    *("predict.RingForecast", "predict.Comparison", "predict.StepForecast"),
    *("predict.TrainingForecast", "predict.TrainingMemory"),
    *("predict.VisiblePairs", "baracuda_kernels.Transport.send", "baracuda_kernels.Transport.recv"),
    # These are of objects that are checked when they are made.
    *("predict.ComputeRates.tflops", "predict.ComputeRates.state_seconds_per_byte"),
    "baracuda_kernels.ElementKind.of_dtype",  # returns None
    *("predict.exchange_seconds", "predict.hiding_chunk", "predict.rank_memory"),
    *("predict.backward_exchange_seconds", "predict.training_memory"),
}


def test_the_list_is_long():
    assert len(EVERYTHING) > 200 and len(CALLS) > 60
    for name in ("RingAttentionPlan.run", "RingAttentionPlan.select", "Stream", "shard"):
        assert f"baracuda_kernels.{name}" in EVERYTHING
    assert "interop.torch.ring_attention" in EVERYTHING and "predict.compare" in EVERYTHING
    assert EVERYTHING.keys() >= MADE_HERE


@pytest.mark.parametrize("kind", ["class", "function", "property"])
def test_every_public_name_is_described(kind):
    """By its own docstring; a field may be described by its class's docstring."""
    missing = []
    for name, described in EVERYTHING.items():
        owner = EVERYTHING.get(name.rpartition(".")[0])
        in_owner = owner is not None and name.rpartition(".")[2] in owner.described()
        if described.kind == kind and not described.doc and not in_owner:
            missing.append(name)
    assert not missing


def test_compiled_classes_begin_with_their_signature(monkeypatch):
    """With the stub's signature, so that help() and the reference show how to make an object."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    signature = importlib.import_module("stub_signatures").of_name
    shown = []
    for name in bk.__all__:
        value = getattr(bk, name)
        if not isinstance(value, type) or issubclass(value, Exception):  # they have their own
            continue
        found = signature(f"baracuda_kernels.{name}")
        described = EVERYTHING.get(f"baracuda_kernels.{name}")
        if not found or found == "()" or "Made by :meth:" in described.doc:
            continue
        shown.append(name)
        first = described.doc.partition("\n")[0]
        # Cython writes the signature of an __init__, with the bare star at the end.
        own = first.replace("(self, ", "(").replace(", device=None, *)", ", *, device=None)")
        assert own == name + found
    assert {"RingAttentionDescriptor", "RingAttentionArgs", "KernelSku", "Stream"} <= set(shown)


def test_no_line_is_read_as_something_else():
    """Of a property's first line the part before a colon would be its type; `P. Ranks` a list."""
    for name, described in EVERYTHING.items():
        first = described.doc.partition("\n")[0]
        assert described.kind != "property" or ": " not in first, name
        assert not re.search(r"^\s*\w\.( |$)", described.doc, re.MULTILINE), name


@pytest.mark.parametrize("described", CALLS, ids=lambda d: d.name)
def test_every_parameter_is_described(described):
    """By a line that has its type, and the default where there is one; the only one may be in the
    first sentence."""
    found = described.described()
    made_here = described.name in MADE_HERE or described.name.endswith("Error")
    if described.kind == "class" and "Made by :meth:" in described.doc:
        return  # that method describes them
    for name, default in described.parameters.items():
        named = re.search(rf"[`{{]{name}\b", described.doc)
        if name not in found and named and (len(described.parameters) == 1 or made_here):
            continue
        assert name in found, f"{name} is not in Parameters"
        line = found[name]
        assert name == "more" or " : " in line or "\n" in line.strip(), f"{name}: no type"
        if default is None or made_here:
            continue
        elsewhere = re.search(":func:|:meth:", line)
        assert elsewhere or re.search("default|optional", line), f"{name}: may be left out"
        # A number, a text, a bool, or a member of an enum by its name.
        if re.fullmatch(r"[A-Z]\w+\.[A-Z]\w+|\d[\d.]*|'\w+'|True|False", default):
            value = default.rpartition(".")[2] if default[0].isalpha() else default.strip("'")
            assert elsewhere or value.removesuffix(".0") in line, (name, default)


@pytest.mark.parametrize(
    "described",
    [d for d in CALLS if d.name not in MADE_HERE and not d.name.endswith("Error")],
    ids=lambda d: d.name,
)
def test_errors_are_named(described):
    """The docstring of a call with arguments names the error for wrong ones."""
    assert re.search(r"\w+Error\b|Made by :meth:", described.doc)
