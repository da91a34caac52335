"""Whether the installed build was made of the sources beside these benchmarks.

Run, it prints the hash of the sources and nothing else, whether or not anything is installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class SourceMismatch(Exception):
    """Evidence would belong to other code than what lies here."""


def source_hash(root: Path) -> str:
    """The hash that the build of `root` embeds, see ``cmake/source_hash.py``."""
    spec = importlib.util.spec_from_file_location("source_hash", ROOT / "cmake" / "source_hash.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.source_hash(root))


def require_own_sources(root: Path) -> str:
    """The source hash that build and folder share.

    Raises
    ------
    SourceMismatch
        If the build has another hash, or if git knows of changes below ``src/`` that are not
        committed. Where there is no git, the hashes alone decide.
    """
    from baracuda_kernels._core import _info  # the hash alone needs no package

    built, here = _info.build_info()["source_hash"], source_hash(root)
    if built != here:
        raise SourceMismatch(
            f"the installed build was made of source {built}, here lies {here}: "
            "install this folder first"
        )
    # Where git knows no file of src/ (a copy of the tree, say) it has nothing to tell.
    known = (root / ".git").exists() and shutil.which("git") and _git(root, "ls-files", "src")
    if known and (changes := _git(root, "status", "--porcelain", "--", "src")):
        raise SourceMismatch(f"src/ has changes that are not committed:\n{changes}")
    return here


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(source_hash(ROOT))
