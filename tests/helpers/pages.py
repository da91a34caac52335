"""Running what the documents show: a page's Python blocks, one after another, as one program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_page(
    page: str,
    folder: Path,
    *,
    append: str = "",
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> str:
    """Output of docs/`page`'s Python blocks and `append`; a failure has the program's stderr."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks, f"{page} shows no Python"
    program = folder / f"{Path(page).stem.replace('-', '_')}_page.py"
    program.write_text("\n".join([*blocks, append]))
    return run_program(program, folder, launcher=launcher, environment=environment, timeout=timeout)


def run_program(
    program: Path,
    folder: Path,
    *arguments: str,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> str:
    """Output of a program that must succeed, started in `folder` by this Python."""
    done = subprocess.run(
        [
            *launcher,
            sys.executable,
            "-W",
            "error::DeprecationWarning:__main__",
            str(program),
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
