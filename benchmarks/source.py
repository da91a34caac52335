"""Whether the installed build was made of the sources beside these benchmarks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from baracuda_kernels._core import _info


class SourceMismatch(Exception):
    """Evidence would belong to other code than what lies here."""


def source_hash(root: Path) -> str:
    """``find src -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16`` at `root`."""
    paths = [p for p in (root / "src").rglob("*") if p.is_file() and not p.is_symlink()]
    names = sorted(str(p.relative_to(root)).encode() for p in paths)
    total = hashlib.sha256()
    for name in names:
        digest = hashlib.sha256((root / name.decode()).read_bytes()).hexdigest()
        total.update(digest.encode() + b"  " + name + b"\n")
    return total.hexdigest()[:16]


def require_own_sources(root: Path) -> str:
    """The source hash that build and folder share.

    Raises
    ------
    SourceMismatch
        If the build has another hash, or if git knows of changes below ``src/`` that are not
        committed. Where there is no git, the hashes alone decide.
    """
    built, here = _info.build_info()["source_hash"], source_hash(root)
    if built != here:
        raise SourceMismatch(
            f"the installed build was made of source {built}, here lies {here}: "
            "install this folder first"
        )
    # Where git knows no file of src/ (a copy of the tree, say) it has nothing to tell.
    if (root / ".git").exists() and shutil.which("git") and _git(root, "ls-files", "src"):
        changes = _git(root, "status", "--porcelain", "--", "src")
        if changes:
            raise SourceMismatch(f"src/ has changes that are not committed:\n{changes}")
    return here


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
