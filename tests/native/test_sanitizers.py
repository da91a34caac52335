"""The host part of the library, built by the C++ compiler alone, under the sanitizers."""

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SOURCES = FOLDER.parents[1] / "src" / "cuda"
SANITIZERS = {"address and undefined behaviour": "address,undefined", "threads": "thread"}
COMPILER = os.environ.get("CXX", "g++")


def links(flags, folder):
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    built = subprocess.run([COMPILER, *flags, source, "-o", folder / "empty"],
                           capture_output=True, check=False).returncode == 0
    # Thread sanitizer needs an address space that not every container gives.
    return built and subprocess.run([folder / "empty"], check=False).returncode == 0


@pytest.mark.parametrize("kind", SANITIZERS)
def test_threads_that_share_everything(kind, tmp_path):
    flags = [f"-fsanitize={SANITIZERS[kind]}", "-fno-sanitize-recover=all", "-g1", "-pthread"]
    if not links(flags, tmp_path):
        pytest.skip(f"capability: {COMPILER} links no sanitizer of {kind}")
    # Vector kernels take long to compile so; the baseline does what the others do.
    sources = [p for p in SOURCES.rglob("*.cpp") if not p.stem.endswith(("_avx2", "_avx512"))]
    stub = tmp_path / "vectors.cpp"
    stub.write_text(
        '#include "attention/backward/host/gradients.h"\n'
        "namespace baracuda { namespace host {\n"
        "extern const IsaKernels kAvx2Kernels, kAvx512Kernels;\n"
        "const IsaKernels kAvx2Kernels{}, kAvx512Kernels{};\n"
        "extern const GradientKernels kAvx2Gradients, kAvx512Gradients;\n"
        "const GradientKernels kAvx2Gradients{}, kAvx512Gradients{};\n"
        "} }\n")
    program = tmp_path / "stress"
    definitions = [f'-DBARACUDA_{name}="test"' for name in
                   ("SOURCE_HASH", "VERSION", "ARCHITECTURES", "NVCC", "CXX")]
    # One unit a file, two at once.
    objects = []
    commands = []
    for source in [*sources, stub, FOLDER / "stress.cpp"]:
        out = tmp_path / f"{len(objects)}.o"
        objects.append(out)
        commands.append([COMPILER, "-std=c++17", "-O0", *flags, f"-I{SOURCES}",
                         f"-I{SOURCES / 'include'}", *definitions, "-c", source, "-o", out])
    for pair in zip(commands[::2], [*commands[1::2], None]):
        running = [subprocess.Popen(command) for command in pair if command]
        assert all(process.wait() == 0 for process in running)
    subprocess.run([COMPILER, *flags, *objects, "-ldl", "-o", program], check=True)
    result = subprocess.run(
        [program, "2"], capture_output=True, check=False, text=True, timeout=240,
        env={**os.environ, "BARACUDA_HOST_ISA": "baseline", "BARACUDA_NUM_THREADS": "3"})
    assert result.returncode == 0 and result.stdout == "done\n", result.stdout + result.stderr
