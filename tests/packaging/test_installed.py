"""The installed package: stable ABI, symbols, size, import time, stubs, kernels' resources."""

import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import baracuda_kernels as bk

# An editable install has its compiled modules in one folder and its Python in another.
PACKAGE = next(p for p in map(pathlib.Path, bk.__path__) if (p / "_core" / "__init__.py").exists())
DIRECT_URL = importlib.metadata.distribution("baracuda-kernels").read_text("direct_url.json") or "{}"
EDITABLE = json.loads(DIRECT_URL).get("dir_info", {}).get("editable", False)
LIBRARY = PACKAGE / "libbaracuda_kernels.so"
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
MODULES = sorted(PACKAGE.rglob("*.abi3.so"))
needs_wheel = pytest.mark.skipif(
    EDITABLE, reason="capability: an install that is not editable (that one rebuilds on import)"
)
needs_cuda_build = pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_module_is_stable_abi():
    assert len(MODULES) >= 20 and LIBRARY.exists()
    assert set(PACKAGE.rglob("*.so")) == {*MODULES, LIBRARY}
    result = subprocess.run([sys.executable, "-m", "abi3audit", "--strict", "--verbose",
                             "--assume-minimum-abi3", "3.11", *MODULES],
                            capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_our_symbols_are_exported():
    symbols = output_of("nm", "-D", "--defined-only", "--format=posix", LIBRARY).split("\n")
    names = {line.split()[0] for line in symbols if line}
    assert names and all(name.startswith("baracuda_") for name in names), sorted(names)[:20]
    for module in MODULES:
        lines = output_of("nm", "-D", "--defined-only", "--format=posix", module).split("\n")
        assert {line.split()[0] for line in lines if line} == {f"PyInit_{module.name.split('.')[0]}"}


def test_nothing_of_cuda_or_nccl_is_linked():
    for path in (LIBRARY, *MODULES):
        needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-d", path))
        assert not [n for n in needed if re.search("cuda|nccl|cudart|python", n.replace(
            "libbaracuda_kernels", ""))], f"{path.name}: {needed}"


def test_the_libraries_are_hardened():
    """All is bound and read-only before main, and buffers of the C ABI are watched."""
    for path in (LIBRARY, *MODULES):
        assert "BIND_NOW" in output_of("readelf", "-d", path), path.name
        assert "GNU_RELRO" in output_of("readelf", "-lW", path), path.name
    symbols = output_of("readelf", "-W", "--dyn-syms", LIBRARY)
    assert "__stack_chk_fail" in symbols and "__snprintf_chk" in symbols


@needs_wheel
def test_the_wheel_is_small():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in PACKAGE.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path)
    assert len(packed.getvalue()) < 15e6


@needs_wheel
def test_import_is_quick_and_pulls_in_no_framework():
    script = (
        "import sys, time; start = time.perf_counter(); import baracuda_kernels; "
        "print(time.perf_counter() - start); "
        "print([m for m in ('torch', 'jax', 'cupy', 'numpy', 'cuda') if m in sys.modules])"
    )
    best = 1e9
    for _ in range(5):
        seconds, modules = output_of(sys.executable, "-c", script).split("\n")[:2]
        assert modules == "[]"
        best = min(best, float(seconds))
    assert best < 0.3


@needs_wheel
def test_it_runs_with_no_driver_and_no_nccl():
    script = (
        "import numpy as np, baracuda_kernels as bk\n"
        "q = np.ones((1, 2, 8, 16), np.float32)\n"
        "y, lse = bk.run_local_ring(q, q, q, 4)\n"
        "assert np.allclose(y, 1)\n"
        "print(bk._devices())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.stdout.strip() == "[]"


def test_the_checkout_does_not_shadow_the_installed_package():
    """Started at the top of the tree, Python finds baracuda_kernels/ there first."""
    for command in (["-m", "baracuda_kernels", "info", "--json"],
                    ["-c", "import baracuda_kernels as bk; print(bk.registry.ops())"]):
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)


def test_the_embedded_hash_is_that_of_the_sources():
    digest = subprocess.run([sys.executable, ROOT / "benchmarks" / "source.py"], check=True,
                            capture_output=True, text=True).stdout.strip()
    assert bk._build_info()["source_hash"] == digest, "the installed build is of other sources"


def test_the_version_is_the_metadata_s():
    from importlib.metadata import version

    assert version("baracuda-kernels") == bk.__version__ == bk._build_info()["version"]


@pytest.fixture(scope="module", autouse=True)
def one_mypy_cache(tmp_path_factory):
    """A cache for the checks of one run, so that they read the frameworks' sources once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPY_CACHE_DIR", str(tmp_path_factory.mktemp("mypy")))
        yield


def checked(*command, cwd):
    """The output of a checker that must find no error."""
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, check=False,
                          stderr=subprocess.STDOUT, text=True, cwd=cwd)  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


FRAMEWORKS = ("jax", "torch", "transformers")
ABSENT = [name for name in FRAMEWORKS if importlib.util.find_spec(name) is None]


@pytest.mark.timeout(300)
def test_the_package_and_calls_of_its_adapters_type_check(tmp_path):
    """All of the package; of the adapters those whose framework is here. One run, as reading the
    frameworks takes most of it."""
    # Without its framework an adapter is made of Any, which strict mode refuses.
    modules = {"jax": ("jax.*",), "transformers": ("transformers.*",),
               "torch": ("torch.*", "_torch_rendezvous", "transformers.*")}  # fmt: skip
    left_out = sorted({f"baracuda_kernels.interop.{m}" for name in ABSENT for m in modules[name]})
    config = with_settings(tmp_path, left_out, "ignore_errors = true")
    # Reading these takes longer than all the rest, and nothing of ours has a type from them.
    unread = ["transformers.models.*", "torch._dynamo.*", "torch._inductor.*", "sympy.*"]
    with_settings(tmp_path, unread, 'follow_imports = "skip"')
    programs = () if {"jax", "torch"} & {*ABSENT} else ("-m", "typed_frameworks")
    shutil.copy(HERE / "typed_frameworks.py", tmp_path)
    checked("mypy", "--config-file", config, "-p", "baracuda_kernels", *programs, cwd=tmp_path)


def test_the_stubs_agree_with_the_modules(tmp_path):
    allowed = [HERE / "stubtest_allowlist.txt", tmp_path / "absent.txt"]
    without = {"jax": "jax.*", "torch": "(_?torch.*|transformers)",
               "transformers": "transformers"}  # fmt: skip
    allowed[1].write_text("".join(f"baracuda_kernels.interop.{without[x]}.*\n" for x in ABSENT))
    # No type is looked at here, so the frameworks, which take a minute, need not be read.
    with_settings(tmp_path, [f"{name}.*" for name in FRAMEWORKS], 'follow_imports = "skip"')
    config = with_settings(tmp_path, ["baracuda_kernels.*"], "ignore_errors = true")
    checked("mypy.stubtest", "baracuda_kernels", "--mypy-config-file", config,
            "--ignore-unused-allowlist", *(x for path in allowed for x in ("--allowlist", path)),
            cwd=tmp_path)  # fmt: skip


def with_settings(folder, modules, setting):
    """The project's settings in a file of `folder`, and these for some modules besides."""
    config = folder / "pyproject.toml"
    settings = (config if config.exists() else ROOT / "pyproject.toml").read_text()
    if modules:
        settings += f"\n[[tool.mypy.overrides]]\nmodule = {modules}\n{setting}\n"
    config.write_text(settings)
    return config


def misuse(folder):
    """The user's program with an error in its last line. A checker must find it."""
    program = folder / "misuse.py"
    wrong = "bad: str = bk.shard(np.zeros(1), 1)\n"
    program.write_text((HERE / "typed_program.py").read_text() + wrong)
    return program


def test_a_users_program_type_checks(tmp_path):
    program = shutil.copy(HERE / "typed_program.py", tmp_path)
    checked("mypy", "--strict", program, cwd=tmp_path)
    wrong = subprocess.run([sys.executable, "-m", "mypy", "--strict", misuse(tmp_path)],
                           capture_output=True, check=False, text=True, cwd=tmp_path)
    assert "Found 1 error" in wrong.stdout, wrong.stdout


def test_a_users_program_is_clean_in_pyright(tmp_path):
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("capability: pyright is installed")
    program = shutil.copy(HERE / "typed_program.py", tmp_path)
    environment = ("--pythonpath", sys.executable)
    assert "0 errors, 0 warnings" in checked("pyright", *environment, program, cwd=tmp_path)
    wrong = subprocess.run([sys.executable, "-m", "pyright", *environment, misuse(tmp_path)],
                           capture_output=True, check=False, text=True, cwd=tmp_path)
    assert "1 error," in wrong.stdout, wrong.stdout


@functools.cache
def cuobjdump(*options):
    """Output of cuobjdump on the library; the tool is on PATH or in its wheel."""
    wheel = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia/cu13/bin"
    path = f"{wheel}:{os.environ['PATH']}"
    tool = shutil.which("cuobjdump", path=path)
    assert tool is not None, "cuobjdump: neither on PATH nor in nvidia-cuda-cuobjdump's wheel"
    return subprocess.run([tool, *options, LIBRARY], check=True, capture_output=True, text=True,
                          env={**os.environ, "PATH": path}).stdout


def resources():
    """(architecture, kernel) -> dict of its registers, stack and local bytes."""
    found, arch, name = {}, None, None
    for line in cuobjdump("-res-usage").split("\n"):
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        if match := re.search(r"Function (\w+):", line):
            name = match[1]
        if match := re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", line):
            found[arch, name] = dict(zip(("reg", "stack", "local"), map(int, match.groups())))
    return found


@needs_cuda_build
def test_no_kernel_spills():
    kernels = resources()
    architectures = {arch for arch, _ in kernels}
    assert architectures == {"sm_80", "sm_90", "sm_90a"}
    assert len(kernels) >= 2 * 10
    bad = {key: use for key, use in kernels.items() if use["local"] or use["reg"] > 255}
    assert not bad
    for (arch, name), use in kernels.items():
        if "sm80" in name or "sm90" in name:
            assert use["stack"] == 0, f"{arch} {name}: {use}"


def disassembly():
    """(architecture, kernel's name, its SASS) of every kernel."""
    for code in re.split(r"^Fatbin elf code:", cuobjdump("-sass"), flags=re.MULTILINE)[1:]:
        arch = re.search(r"^arch = (\w+)", code, re.MULTILINE)[1]
        for function in re.split(r"Function : ", code)[1:]:
            yield arch, function.split("\n", 1)[0], function


@needs_cuda_build
def test_tensor_core_kernels_use_tensor_cores():
    seen = hopper = backward = scores_ahead = 0
    for _, name, function in disassembly():
        # Of the gradients' only the step has products; what goes over rows is named after sm80, too.
        if "sm80" in name and ("backward" not in name or "step_kernel" in name):
            seen += 1
            for instruction in ("HMMA.16816.F32", "LDSM", "LDGSTS"):
                assert instruction in function, f"{name} has no {instruction}"
            assert "STL" not in function and "LDL" not in function, f"{name} spills"
        if "sm90" in name and "step_kernel" in name:
            gradients = "backward" in name
            backward += gradients
            hopper += not gradients
            for instruction in ("HGMMA", "UTMALDG", "USETMAXREG"):
                assert instruction in function, f"{name} has no {instruction}"
            assert "STL" not in function and "LDL" not in function, f"{name} spills"
            # Where ptxas takes the products one by one (C75xx, which is no warning to it), each has a
            # wait of its own.
            products, waits = (function.count(x) for x in ("HGMMA", "WARPGROUP.DEPBAR"))
            assert waits <= products // 4, f"{name}: {products} products wait {waits} times"
            # Matrix descriptors stay in uniform registers: moving them all costs a quarter of a loop.
            # Head_dim 256 has more of them than there is room for. In clusters there is also the address
            # of the other block.
            loops = _product_loops(function)
            assert loops, f"{name} has no loop with products"
            # Those with scores ahead take two key tiles at a time.
            of_loops = [sum("HGMMA" in line for line in body) for body in loops]
            scores_ahead += not gradients and max(of_loops) >= 32
            for body in loops:
                moves = sum("R2UR" in line for line in body)
                assert moves <= 14, f"{name} moves {moves} values to uniform registers in a loop"
    assert seen >= 20
    # (4 flag variants of each: head_dim 64; 256, and the same in clusters; both tiles at 128 with scores
    # ahead, and the same in clusters. At 128 also the last steps and whole calls of three warpgroups,
    # and without scores ahead 3 of one tile and whole calls of another) x 2 dtypes
    assert hopper == (7 * 4 + 2 + 3 + 1) * 2
    assert scores_ahead == 4 * 4 * 2
    # (3 head dims and longer key tiles at 64, each in a fixed order too, and at 128 the pair and the
    # first stores) x 2 dtypes
    assert backward == 20


@needs_cuda_build
def test_steps_overlap_on_hopper_alone():
    for wanted_arch, wanted in (("sm_80", False), ("sm_90", True)):
        steps = [(name, function) for arch, name, function in disassembly()
                 if arch == wanted_arch and "sm80" in name]  # fmt: skip
        assert len(steps) >= 10
        for name, function in steps:
            # griddepcontrol.launch_dependents and griddepcontrol.wait
            for instruction in ("PREEXIT", "ACQBULK"):
                assert (instruction in function) == wanted, (wanted_arch, name)


def _product_loops(function):
    """The innermost loops with warpgroup products, each as its instructions.

    A loop ends with a jump to an instruction that every way to the jump goes through. A wait's second
    look lies behind the kernel's end and jumps back, too, but into the middle of something.
    """
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", function)
    at = {int(address, 16): i for i, (address, _) in enumerate(code)}
    jumps = {}
    for i, (_, instruction) in enumerate(code):
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if target is not None:
            jumps[i] = at[int(target[1], 16)]
    starts = sorted({0, *jumps.values(), *(i + 1 for i in jumps if i + 1 < len(code))})
    block_of = {start: block for block, start in enumerate(starts)}
    texts = [[text for _, text in code[i:j]] for i, j in itertools.pairwise([*starts, len(code)])]
    before = [[] for _ in starts]
    for block, start in enumerate(starts):
        last = start + len(texts[block]) - 1
        if last in jumps:
            before[block_of[jumps[last]]].append(block)
        falls_through = re.match(r"(BRA 0x|EXIT|RET)", texts[block][-1]) is None
        if falls_through and block + 1 < len(starts):
            before[block + 1].append(block)
    loops = [
        loop
        for loop in _natural_loops(before)
        if any("HGMMA" in text for block in loop for text in texts[block])
    ]
    return [
        [text for block in sorted(loop) for text in texts[block]]
        for loop in loops
        if not any(other < loop for other in loops)
    ]


def _natural_loops(before):
    """The loops of a graph, each a set of blocks; before: of each block those that lead to it."""
    every = (1 << len(before)) - 1
    above = [1] + [every] * (len(before) - 1)  # as bits, the blocks that all ways to one go through
    changed = True
    while changed:
        changed = False
        for block in range(1, len(before)):
            common = every
            for other in before[block]:
                common &= above[other]
            common |= 1 << block
            changed |= common != above[block]
            above[block] = common
    loops = {}
    for head, others in enumerate(before):
        for last in others:
            if not above[last] >> head & 1:
                continue
            loop = loops.setdefault(head, {head})
            new = [last]
            while new:
                block = new.pop()
                if block not in loop:
                    loop.add(block)
                    new.extend(before[block])
    return list(loops.values())


@needs_cuda_build
def test_ptx_for_later_cards_is_there():
    assert ".target sm_80" in cuobjdump("-ptx")
