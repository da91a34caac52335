"""Which kernels of two builds, libraries or cubins, have the same machine code.

`python -m benchmarks.compare_sass OLD NEW` writes for each kernel and architecture whether it is
equal, and how many instructions it has in both. Left out of the comparison are addresses, encodings
and the offsets of parameters (`c[0x0][...]`), which move when a field is added to an argument.
Exits with 1 where a kernel differs or is missing in one of the two.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

Kernels = dict[tuple[str, str], list[str]]  # (architecture, mangled name) -> instructions


def cuobjdump(*arguments: str) -> str:
    """Output of the tool on PATH or in the wheel nvidia-cuda-cuobjdump."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    path = f"{wheel}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SystemExit("cuobjdump is neither on PATH nor in the wheel nvidia-cuda-cuobjdump")
    return subprocess.check_output([tool, *arguments], text=True, env={**os.environ, "PATH": path})


def source_name(name: str) -> str:
    """A mangled name without the hash that nvcc gives to a file's anonymous namespace."""
    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_(\w+?_cu)_[0-9a-f]{8}(_\d+)?", r"\1_", name)


def read_kernels(file: str) -> Kernels:
    """The kernels of a library, instruction by instruction."""
    kernels: Kernels = {}
    architecture, body = "", None
    for line in cuobjdump("-sass", file).splitlines():
        if match := re.search(r"\b(?:arch =|code for) (sm_\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            body = kernels.setdefault((architecture, source_name(match[1])), [])
        elif body is not None and (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)):
            # Without what only says where parameters lie.
            body.append(" ".join(re.sub(r"c\[0x0\]\[[^\]]*\]", "c[0x0][.]", match[1]).split()))
    return kernels


def main() -> int:
    """Compares and prints; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--different", action="store_true", help="leave equal kernels out")
    options = parser.parse_args()
    old, new = read_kernels(options.old), read_kernels(options.new)
    if not old or not new:
        raise SystemExit(f"no kernels in {options.new if old else options.old}")
    kernels = sorted(old.keys() | new.keys())
    different = 0
    names = "\n".join(name for _, name in kernels)
    if shutil.which("c++filt"):  # as the source has them
        names = subprocess.check_output(["c++filt", "-p"], input=names, text=True)
    for key, name in zip(kernels, names.splitlines(), strict=True):
        before, after = old.get(key), new.get(key)
        equal = before == after
        different += not equal
        if equal and options.different:
            continue
        word = "equal" if equal else "different" if before and after else "missing"
        counts = " ".join(f"{len(body) if body else 0:>6}" for body in (before, after))
        print(f"{word:<10}{counts}  {key[0]:<8}{name}")
    print(f"{len(kernels)} kernels, {different} different or missing")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
