"""The core knows no framework, the core and the registry know no op, and the core's files are short."""

import pathlib
import re

import pytest

from baracuda_kernels import registry

ROOT = pathlib.Path(__file__).parent.parent.parent
CORE = sorted(
    path
    for path in (ROOT / "src/pyx/baracuda_kernels/_core").iterdir()
    if path.suffix in (".py", ".pyx", ".pxd") and path.name != "__init__.py"
)
# The other commands are about Ring Attention by their name.
ABOUT_ANY_OP = [
    *CORE, ROOT / "baracuda_kernels/registry.py",
    *(ROOT / "baracuda_kernels/cli" / f"_{name}.py" for name in ("explain", "info", "skus")),
]
FRAMEWORK = r"\b(?:c?import|from)\s+(?:torch|jax|cupy|mpi4py|transformers|numpy)\b"


def code_of(text):
    """The text without comments and docstrings, where examples may name anything."""
    return re.sub(r'"""(?:.|\n)*?"""|#.*', "", text)


def op_names():
    for spec in registry.specs():
        yield spec.name
        yield spec.descriptor_type.__name__
        yield from (plan.__name__ for plan in spec.plan_types.values())
        yield from {type(sku.op).__name__ for _, sku in spec.skus()}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_no_framework(path):
    assert not re.findall(FRAMEWORK, path.read_text())


@pytest.mark.parametrize("path", ABOUT_ANY_OP, ids=lambda path: path.name)
def test_no_op_is_named(path):
    code = code_of(path.read_text())
    assert [name for name in op_names() if re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_a_file_of_the_core_is_short(path):
    assert len(path.read_text().splitlines()) <= 420


# Files that kernels of several families include.
SHARED = sorted(
    path
    for path in (ROOT / "src/cuda").rglob("*.cuh")
    if not {"sm80", "sm90", "simt"} & {*path.parts}
)


def test_kernels_that_families_share_are_each_familys_own():
    """A family's files are compiled for its own architectures. Before CUDA 13 nvcc gives kernels of
    equal template arguments one weak stub, so the linker would drop one family's architectures."""
    kernels = [
        line
        for path in SHARED
        for line in path.read_text().splitlines()
        if re.search(r"\b__global__\b", line)
    ]
    assert len(kernels) >= 3 and all(line.startswith("static __global__") for line in kernels)


def test_the_walls_would_show_a_hole():
    names = set(op_names())
    assert {"ring_attention", "FlashSdpaDescriptor", "RingAttentionPlan", "AttentionKind"} <= names
    assert re.findall(FRAMEWORK, "    import torch.distributed as dist")
    assert "flash_sdpa" in code_of('x = "flash_sdpa"  # flash') and "#" not in code_of("1  # two")
