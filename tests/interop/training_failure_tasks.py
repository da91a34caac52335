"""The worker's steps of training in which one rank fails in a call of `BatchSharder`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from training_tasks import batches_of, call, of_rank, sharder_of


class TrainingFailureTasks:
    rank: int

    def count_fails(self, task: dict) -> dict:
        """The error of every rank if one fails in `count`, and the count of the step after."""
        model, sharder, mesh = sharder_of(task)
        batch = of_rank(batches_of(task["rows"], mesh.size(0))[0], mesh)
        part = sharder.shard(batch)
        call(model, part)  # the ring is made
        odd = self.rank == task["odd_rank"]
        shards: Any = [part]
        match task["what"]:
            case "an iterable":
                shards = _failing(iter([part, part]), odd)
            case "batches that are cut meanwhile":
                shards = _failing((sharder.shard(batch) for _ in range(2)), odd)
            case "no parts" if odd:
                shards = []
            case "no mapping" if odd:
                shards = [None]
            case "no labels on one ring" if mesh.get_local_rank("dp"):
                shards = [{**part, "shift_labels": None}]
            case "fewer batches" if mesh.get_local_rank("dp"):
                return self._raised(lambda: sharder.shard(batch), sharder, part)
        if task.get("host_waits", True):
            return self._raised(lambda: sharder.count(shards), sharder, part)

        def without_waiting() -> None:
            with mock.patch.object(type(sharder), "_host_waits", lambda _: False):
                sharder.count(shards)
            call(model, part)  # the others of the ring learn of it here

        return self._raised(without_waiting, sharder, part)

    def loss_fails(self, task: dict) -> dict:
        """The error of every rank if one fails in `loss`, and the count of the step after."""
        model, sharder, mesh = sharder_of(task)
        batch = of_rank(batches_of(task["rows"], mesh.size(0))[0], mesh)
        part = sharder.shard(batch)
        outputs, targets = call(model, part)
        count = sharder.count([part])
        odd = self.rank == task["odd_rank"]
        if odd and task["what"] == "other rows":
            targets = targets[:, 1:]
        failure = torch.OutOfMemoryError("CUDA out of memory")
        where, name = torch.nn.functional, "cross_entropy"
        fails = odd and task["what"] == "out of memory"
        options = {"side_effect": failure} if fails else {"wraps": getattr(where, name)}

        def step() -> None:
            with mock.patch.object(where, name, **options):
                loss = sharder.loss(outputs, targets, count)
            if task["next"] == "backward":
                loss.backward()
            else:
                call(model, part)

        return self._raised(step, sharder, part)

    def _raised(self, step: Any, sharder: Any, part: dict) -> dict:
        start = time.monotonic()
        answer = {"error": "", "message": ""}
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the test compares its name
            answer = {"error": type(error).__name__, "message": str(error)}
        answer["seconds"] = time.monotonic() - start
        answer["count"] = sharder.count([part]).item()
        call(sharder.model, part)  # the ring goes on
        return answer


def _failing(parts: Iterator[dict], odd: bool) -> Iterator[dict]:
    yield next(parts)
    if odd:
        raise OSError("the file has gone")
    yield from parts
