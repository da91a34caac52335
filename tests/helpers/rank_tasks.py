"""The worker's side of helpers.rank_pool: tasks in as JSON lines, answers out."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from typing import Any

from .rank_pool import RANK_DEVICE, SHOW_STACKS


def own_device() -> int:
    """CUDA ordinal of this rank's GPU."""
    return int(os.environ.get(RANK_DEVICE, "0"))


def serve(rank: Any) -> None:
    """Answer every task by the method of `rank` that it names, until the input ends."""
    faulthandler.register(SHOW_STACKS, all_threads=True)
    # Libraries may print; answers go to the real stdout, everything else to stderr.
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = getattr(rank, task["do"])(task)
        except Exception as error:  # noqa: BLE001 - the parent must hear of any
            traceback.print_exc()
            answer = {"failure": f"rank {rank.rank}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
