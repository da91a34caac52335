"""One batch on every rank of a ring: compared by digests, or sent by the ring's first rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _refusal_message
from baracuda_kernels.interop.transformers import _rounds, _whole_batch


def agree(
    ring: dist.ProcessGroup,
    data: dist.ProcessGroup | None,
    batch: Mapping[str, list[str]],
    error: Exception | None,
) -> None:
    """Raise on every rank if one rank fails or has another batch than its ring, or if the rings and
    the data groups do not fit together. Collective.

    Parameters
    ----------
    ring, data : ProcessGroup
        The ranks that must have one batch, and the ranks that train on other batches: they stop
        with this one.
    batch : mapping of str to list
        The `digests` of the batch. Read only if there is no error.
    error : Exception, optional
        The refusal of this rank, or an error that it met. This rank raises it.
    """

    def compared(ranks: list[dict[str, Any]]) -> dict[str, Any]:
        groups = _same_number([rank["data"] for rank in ranks])
        difference = _difference([rank["batch"] for rank in ranks])
        if difference is not None:
            raise difference
        return {"ring": [len(ranks), _digest_of(groups)]}

    mine = [dist.get_rank()] if data is None else dist.get_process_group_ranks(data)
    message = {"data": [len(mine), _digest_of(mine)], "batch": batch}
    error = error or _shared_ranks(ring, mine)
    _rounds.exchange(ring, data, "shard", message, compared, _same_columns, error)


def add(
    ring: dist.ProcessGroup,
    data: dist.ProcessGroup | None,
    number: int,
    error: Exception | None,
) -> int:
    """The sum of the numbers of all ranks. Raise on every rank if one fails. Collective.

    Parameters
    ----------
    ring, data, error
        As those of `agree`.
    number : int
        Read only if there is no error.
    """

    def summed(ranks: list[dict[str, Any]]) -> dict[str, int]:
        return {"number": sum(rank["number"] for rank in ranks)}

    message = {"number": number}
    total = _rounds.exchange(ring, data, "count", message, summed, summed, error)
    return int(total["number"])


def from_first(ring: dist.ProcessGroup, batch: Any) -> tuple[Any, Exception | None]:
    """The batch of the ring's first rank, on the CPU, or the error that this rank met. Collective.

    An error is not raised here, so that the data group can be told too.
    """
    if ring.size() == 1:
        return batch, None
    error: Exception | None = None
    given: list[Any] = [None, b""]
    if ring.rank() == 0:
        try:
            tensors = _whole_batch.tensors_of(batch)
            given[0] = {name: _plain(name, value) for name, value in tensors.items()}
        except Exception as found:  # noqa: BLE001 - `agree` raises it
            error = found
            given[1] = _refusal_message.encode(_rounds.as_told(found), _rounds.BYTES)
    with _rounds.failures(ring):
        dist.broadcast_object_list(given, src=dist.get_global_rank(ring, 0), group=ring)
    return given[0], error or _refusal_message.decode(0, given[1])


def _plain(name: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor that can be sent."""
    if value.requires_grad:
        raise UnsupportedError(
            f"{name}: got a tensor that requires grad, must be detached with broadcast=True: its "
            "gradient would be lost"
        )
    return value.cpu()


def digests(batch: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The type, the shape and a digest of the values of every tensor."""
    found = {}
    for name, tensor in sorted(batch.items()):
        data = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
        what = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        found[name] = [what, hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()]
    return found


def _difference(ranks: list[dict[str, list[str]]]) -> BaracudaError | None:
    for rank, other in enumerate(ranks):
        for name in sorted({*ranks[0], *other}):
            one, two = ranks[0].get(name), other.get(name)
            if one != two:
                a, b = (x[0] if x else "none" for x in (one, two))
                values = " of other values" if a == b else ""
                return InvalidProblemError(
                    f"batch: got {name} of {a} on rank 0 of the ring and of {b}{values} on rank "
                    f"{rank}, must be the same on all ranks of a ring: sample by the data-parallel "
                    "rank, or "
                    "give BatchSharder broadcast=True"
                )
    return None


def _shared_ranks(ring: dist.ProcessGroup, data: list[int]) -> BaracudaError | None:
    shared = {*dist.get_process_group_ranks(ring)} & {*data}
    if len(shared) == 1:
        return None
    return InvalidProblemError(
        f"data_group: got the ranks {sorted(shared)} of the ring, must have only this rank of them"
    )


def _same_number(groups: list[tuple[int, str]]) -> list[str]:
    """The digests of the data groups of a ring, which must be of one size."""
    for rank, (size, _) in enumerate(groups):
        if size != groups[0][0]:
            raise InvalidProblemError(
                f"data_group: got {groups[0][0]} ranks on rank 0 of the ring and {size} on rank "
                f"{rank}, must be as many on all ranks of a ring"
            )
    return sorted(digest for _, digest in groups)


def _same_columns(messages: list[dict[str, Any]]) -> None:
    """Raise if a ring of this data group has other data groups than this ring.

    If all rings of a data group have the same data groups, each of these has one rank of each of
    the rings, whatever other parallelism there is: it has that many ranks, and the rings are
    disjoint. So no rank passes if any rank is wrong. The order within a group does not matter: the
    loss is a sum.
    """
    rings = [message["ring"] for message in messages]
    for rank, (size, groups) in enumerate(rings):
        if size != rings[0][0]:
            raise InvalidProblemError(
                f"data_group: got a ring of {rings[0][0]} ranks on rank 0 of the group and of "
                f"{size} on rank {rank}, must be of as many on all ranks of the group"
            )
        if groups != rings[0][1]:
            raise InvalidProblemError(
                f"data_group: got other groups on the ring of rank {rank} of the group than on "
                "that of rank 0, must be one group for the first ranks of the rings, one for "
                "their second ranks, and so on"
            )


def _digest_of(values: Iterable[Any]) -> str:
    """Of the sorted values: a process group may have its ranks in any order."""
    data = json.dumps(sorted(values)).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
