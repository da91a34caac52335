"""Writes supported.md: what each op, kernel family and adapter takes, as the registry and code say.

python docs/write_supported.py [FOLDER]; needs a build with CUDA kernels, and no GPU.

No sentence of the page is a claim of its own: a table's rows are asked of the registry, read from
signatures, or name the test that holds them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from refusals_in_tests import refusals as refused_in

import baracuda_kernels as bk
from baracuda_kernels import registry

ROOT = Path(__file__).parent.parent
# Where each family's kernels can run, the lowest compute capability that counts.
PLACES = {"sm90a": ("sm_90", "GPU 9.0"), "sm90a-deterministic": ("sm_90", "GPU 9.0"),
          "sm80": ("sm_80", "GPU from 8.0"), "sm80-deterministic": ("sm_80", "GPU from 8.0"),
          "simt": ("sm_80", "GPU from 8.0"), "host": ("host", "CPU")}  # fmt: skip
ADAPTERS = {
    "`run_local_ring`": ("baracuda_kernels/local_ring.py", "run_local_ring"),
    "torch `ring_attention`": ("baracuda_kernels/interop/torch/_op.py", "ring_attention"),
    "torch `context_parallel`": ("baracuda_kernels/interop/torch/_context.py", "context_parallel"),
    "jax `ring_attention`": ("baracuda_kernels/interop/jax/_op.py", "ring_attention"),
}
ASKED = ("is_causal", "scale", "sequence_layout", "tensor_layout", "return_lse", "deterministic",
         "device", "timeout")  # fmt: skip
# Where the tests of each call's refusals are.
REFUSED_BY = {
    "`run_local_ring`, `shard`, `predict`": ("unit/test_arguments.py",),
    "plans": ("unit/test_bad_inputs.py",),
    "`interop.torch`": (
        "interop/test_torch_errors.py",
        "interop/test_torch_refused_tensors.py",
    ),
    "`interop.transformers`": ("interop/test_transformers.py", "interop/test_training.py"),
    "`interop.jax`": (
        "interop/test_jax.py",
        "interop/test_jax_axes.py",
        "interop/test_jax_gradients.py",
    ),
}
COVERAGE = ROOT / "tests" / "interop" / "ring_coverage.json"
# What a problem may have: options of `explain`, and the tests that compare the answer with float64.
FEATURES: tuple[tuple[str, list[dict[str, Any]], str], ...] = (
    ("lengths that no tile divides", [{"query_len": n} for n in (1, 7, 1000, 4097)],
     "gpu/test_grid.py::test_lengths_masks_and_heads"),
    ("queries and keys of different lengths", [{"query_len": 5, "key_len": 9}],
     "gpu/test_grid.py::test_lengths_masks_and_heads"),
    ("no rows, or no keys", [{"query_len": 0, "key_len": 7}, {"query_len": 7, "key_len": 0}],
     "gpu/test_grid.py::test_nothing_to_attend_to"),
    ("grouped heads, one K/V head", [{"heads": 8, "kv_heads": 2}, {"heads": 8, "kv_heads": 1}],
     "gpu/test_grid.py::test_lengths_masks_and_heads"),
    ("a causal mask", [{"causal": True}], "gpu/test_grid.py::test_lengths_masks_and_heads"),
    ("a scale of 0 or less", [{"scale": 0.0}, {"scale": -0.5}], "gpu/test_grid.py::test_scales"),
)  # fmt: skip
# What operands may be besides; no matter of the registry.
OPERANDS = (
    ("strides, the last dimension contiguous", "gpu/test_grid.py::test_strided_operands",
     "unit/test_local_ring_host.py::test_strided_whole_arrays"),
    ("`lse`, against float64", "gpu/test_ring.py::test_against_float64",
     "unit/test_local_ring_host.py::test_f64"),
    ("K and V staged or in place, with the same bits",
     "gpu/test_ring.py::test_staged_and_in_place_give_the_same_bits",
     "gpu/test_ring.py::test_k_and_v_in_any_dense_order"),
    ("NaN and Inf reach the rows that see them",
     "gpu/test_nonfinite.py::test_nan_and_inf_reach_the_rows_that_see_them"),
)
HEAD = """# What is supported, and what is refused

<!-- Written by `python docs/write_supported.py`: rows are the registry's answers, signatures, and
what tests expect. Do not edit. -->
"""


def accepted(
    spec: registry.OpSpec,
    family: str,
    arch: str,
    direction: bk.Direction = bk.Direction.FORWARD,
    **problem: object,
) -> str:
    """The reason why that family refuses the problem; empty where it takes it."""
    explanation = registry.explain(spec.problem(**problem), arch, direction=direction)
    return next(c.reason for c in explanation.candidates if c.family == family)


def head_dims(
    spec: registry.OpSpec,
    family: str,
    arch: str,
    element: bk.ElementKind,
    direction: bk.Direction,
) -> str:
    """The head_dims that it takes, as a list or as a range."""
    most = 1100
    taken = [d for d in range(1, most) if not accepted(spec, family, arch, direction, head_dim=d,
                                                       dtype=element)]  # fmt: skip
    if len(taken) > 1 and taken == list(range(taken[0], taken[-1] + 1)):
        return f"{taken[0]} to {taken[-1]}"
    return ", ".join(map(str, taken))


def kernels() -> list[str]:
    """A row for each op, direction and family."""
    rows = ["| op | direction | family | runs on | elements | head_dim | scale | deterministic |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for spec in registry.specs():
        families: dict[tuple[bk.Direction, str], list[bk.ElementKind]] = {}
        ordered = {}
        for family, sku in spec.skus():
            families.setdefault((sku.direction, family), []).append(sku.element)
            ordered[sku.direction, family] = sku.precision_guarantee.deterministic
        for (direction, family), elements in families.items():
            arch, where = PLACES[family]
            first = elements[0]
            scales = {"> 0": 0.5, "0": 0.0, "< 0": -0.5}
            fit = [
                name
                for name, scale in scales.items()
                if not accepted(
                    spec, family, arch, direction, scale=scale, dtype=first, head_dim=64
                )
            ]
            rows.append(
                f"| `{spec.name}` | {direction.name.lower()} | `{family}` | {where} | "
                f"{', '.join(e.name for e in elements)} | "
                f"{head_dims(spec, family, arch, first, direction)} | "
                f"{'any finite' if len(fit) == 3 else ' and '.join(fit)} | "
                f"{'yes' if ordered[direction, family] else 'no'} |"
            )
    return rows


def features() -> list[str]:
    """Which families take a problem, by what it has."""
    rows = ["| problem | taken by | answers held by |", "|---|---|---|"]
    layouts = [{"layout": layout} for layout in bk.SequenceLayout]
    named = ", ".join(f"`{layout.name.lower()}`" for layout in bk.SequenceLayout)
    by_layout = (f"the layouts {named}", layouts, "gpu/test_ring.py::test_against_float64")
    for label, problems, test in (*FEATURES, by_layout):
        taken: dict[str, list[str]] = {}  # families -> ops
        for spec in registry.specs():
            known = {option.name for option in spec.options}
            asked = [problem for problem in problems if problem.keys() <= known]
            elements: dict[str, bk.ElementKind] = {}
            for family, sku in spec.skus() if asked else ():
                if sku.direction is bk.Direction.FORWARD:
                    elements.setdefault(family, sku.element)
            fit = [
                f"`{family}`"
                for family, element in elements.items()
                if not any(
                    accepted(spec, family, PLACES[family][0], dtype=element, head_dim=64, **one)
                    for one in asked
                )
            ]
            if fit:
                families = "every family" if len(fit) == len(elements) else ", ".join(fit)
                taken.setdefault(families, []).append(f"`{spec.name}`")
        by = "; ".join(f"{families} of {', '.join(ops)}" for families, ops in taken.items())
        rows.append(f"| {label} | {by} | {_tests(test)} |")
    return rows


def operands() -> list[str]:
    """What operands may be, with the tests that hold it."""
    rows = ["| operands | held by |", "|---|---|"]
    return rows + [f"| {label} | {_tests(*tests)} |" for label, *tests in OPERANDS]


def _tests(*names: str) -> str:
    for name in names:
        file, function = name.split("::")
        if f"def {function}(" not in (ROOT / "tests" / file).read_text():
            raise ValueError(f"there is no test {name}")
    return ", ".join(f"`{name}`" for name in names)


def refusals() -> list[str]:
    """What no kernel of the library takes, with the registry's own words."""
    rows = ["| asked | answer |", "|---|---|"]
    ring = registry.get("ring_attention")

    def ask(label: str, **problem: object) -> None:
        try:
            registry.explain(ring.problem(**problem), problem.pop("arch", "host")).require()
        except bk.BaracudaError as error:
            text = str(error).rpartition("host: ")[2].replace("|", "\\|")
            text = (
                re.sub(r"got \w+,", "got it,", text) if label.startswith("element") else text
            )
            rows.append(f"| {label} | `{type(error).__name__}`: {text} |")
        else:
            raise AssertionError(f"{label} is served")

    others = [element for element in bk.ElementKind if element not in ring.elements]
    for element in others:
        ask(f"element {', '.join(e.name for e in others)}", dtype=element)
    (rows[2:],) = [[row] for row in set(rows[2:])]  # one answer to all of them
    ask("head_dim 1025", head_dim=1025)
    ask("heads that kv_heads do not divide", heads=3, kv_heads=2)
    ask("a scale that is not finite", scale=float("inf"))
    try:
        registry.explain(ring.problem(), "host", direction="BACKWARD")
    except bk.UnsupportedError as error:
        rows.append(f"| a gradient | `UnsupportedError`: {error} |")
    return rows


def adapters() -> list[str]:
    """Which of a call's options each adapter has, by its signature."""
    rows = [
        f"| call | {' | '.join(f'`{name}`' for name in ASKED)} |",
        "|---" * (len(ASKED) + 1) + "|",
    ]
    for label, (path, function) in ADAPTERS.items():
        tree = ast.parse((ROOT / path).read_text())
        # The last of that name: before it come its overloads.
        (*_, found) = [n for n in ast.walk(tree) if getattr(n, "name", "") == function]
        if isinstance(found, ast.ClassDef):
            found = next(n for n in found.body if getattr(n, "name", "") == "__init__")
        has = {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}
        rows.append(f"| {label} | {' | '.join('yes' if n in has else '–' for n in ASKED)} |")
    return rows


def refused_calls() -> list[str]:
    """What each call refuses, as its tests expect."""
    rows = ["| call | error | its message has | test |", "|---|---|---|---|"]
    for call, files in REFUSED_BY.items():
        for file in files:
            for test, errors, messages in refused_in(file):
                said = "; ".join(f"`{text}`" for text in messages).replace("|", "\\|")
                rows.append(f"| {call} | {errors} | {said} | `{file}::{test}` |")
    return rows


def coverage() -> list[str]:
    """How many forms and models were tried within `context_parallel`, and what came of them."""
    tried = json.loads(COVERAGE.read_text())
    kinds = {
        "forms of attention, `context_parallel`": tried["forms"],
        "models, `context_parallel`": [row["context_parallel"] for row in tried["models"]],
        "models, `baracuda_ring`": [row["register"] for row in tried["models"]],
    }
    rows = ["| tried | right | refused by name | wrong |", "|---|---|---|---|"]
    for label, found in kinds.items():
        answers = [row["is"] for row in found]
        counts = [str(answers.count(kind)) for kind in ("right", "refused", "wrong")]
        if sum(map(int, counts)) != len(answers):
            raise ValueError(f"{COVERAGE.name} has other answers than right, refused and wrong")
        rows.append(f"| {label} | {' | '.join(counts)} |")
    return rows


# Heading -> the function of its table. Only those of the first need CUDA kernels in the build.
OF_KERNELS = {"Kernels": kernels, "Problems": features}
OTHERS = {
    "Operands": operands,
    "Refused by every kernel": refusals,
    "Options of calls on whole arrays": adapters,
    "Refused by calls": refused_calls,
    "Under unmodified models": coverage,
}


def section(heading: str, rows: list[str]) -> str:
    """A heading and its table."""
    link = "" if heading != "Under unmodified models" else (
        "Row by row: [what context_parallel catches](context-parallel.md).\n\n")  # fmt: skip
    return f"## {heading}\n\n{link}" + "\n".join(rows) + "\n"


def page() -> str:
    """The whole page."""
    parts = [section(heading, rows()) for heading, rows in (OF_KERNELS | OTHERS).items()]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    if not bk._build_info()["cuda_built"]:
        raise SystemExit("needs a build with the CUDA kernels, or the page would have none of them")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "supported.md").write_text(page())
