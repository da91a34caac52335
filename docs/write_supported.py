"""Writes supported.md: what each op, kernel family and adapter takes, as the registry and code say.

python docs/write_supported.py [FOLDER]; needs a build with CUDA kernels, and no GPU.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import baracuda_kernels as bk
from baracuda_kernels import registry

ROOT = Path(__file__).parent.parent
# Where each family's kernels can run, the lowest compute capability that counts.
PLACES = {"sm90a": ("sm_90", "GPU 9.0"), "sm80": ("sm_80", "GPU from 8.0"),
          "simt": ("sm_80", "GPU from 8.0"), "host": ("host", "CPU")}  # fmt: skip
ADAPTERS = {
    "`run_local_ring`": ("baracuda_kernels/local_ring.py", "run_local_ring"),
    "torch `ring_attention`": ("baracuda_kernels/interop/torch/_op.py", "ring_attention"),
    "torch `context_parallel`": ("baracuda_kernels/interop/torch/_context.py", "context_parallel"),
    "jax `ring_attention`": ("baracuda_kernels/interop/jax.py", "ring_attention"),
}
ASKED = (
    "is_causal",
    "scale",
    "sequence_layout",
    "tensor_layout",
    "return_lse",
    "device",
    "timeout",
)
HEAD = """# What is supported, and what is refused

<!-- Written by `python docs/write_supported.py`, which asks the registry; do not edit. -->

What is not in these tables is a typed error that names the argument, before anything is launched or
sent.
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
    rows = ["| op | direction | family | runs on | elements | head_dim | scale |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for spec in registry.specs():
        families: dict[tuple[bk.Direction, str], list[bk.ElementKind]] = {}
        for family, sku in spec.skus():
            families.setdefault((sku.direction, family), []).append(sku.element)
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
                f"{'any finite' if len(fit) == 3 else ' and '.join(fit)} |"
            )
    return rows


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
                re.sub(r"^element \w+ is", "it is", text) if label.startswith("element") else text
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


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Kernels", "\n".join(kernels()),
             "Common to all: any lengths, also of queries and keys that differ; grouped and "
             "multi-query heads; causal masks on global positions; the layouts "
             + ", ".join(f"`{name.lower()}`" for name in bk.SequenceLayout.__members__)
             + "; strides; `lse`.",
             "## Refused", "\n".join(refusals()), "## Calls on arrays",
             "Which options a call has; what else a model asks for (dropout, masks, windows) each "
             "refuses by name.", "\n".join(adapters())]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "supported.md").write_text(page())
