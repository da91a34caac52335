"""The ring as a model's attention function, and as the function that makes its mask."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from baracuda_kernels import sharding
from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _process_group
from baracuda_kernels.interop.torch._context import refuse_decode
from baracuda_kernels.interop.torch._op import attend
from baracuda_kernels.interop.torch._refusal import tell

# Keyword arguments by which models ask for an attention other than softmax(q·k) over all rows.
_VARIANTS = ("softcap", "s_aux", "position_bias", "head_mask", "indices", "topk_indices")
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


class Ring(NamedTuple):
    """A ring: the name of its process group, and the layout of its rows."""

    group_name: str
    layout: str

    def ranks(self) -> int:
        return _process_group.resolve(self.group_name).size()


def attention(
    ring: Ring,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    compared: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    `compared`: the positions were compared already, when the model was called.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    try:
        _refuse(ring, module, query, attention_mask, dropout, options)
        if not compared and options.get("position_ids") is not None:
            compare_positions(options["position_ids"], query.shape[-2], ring)
        refuse_decode(query, key, is_causal)
    except BaracudaError as error:
        tell(ring.group_name, error, query.device)
        raise
    y, _ = attend(query, key, value, ring.group_name, is_causal, scaling, ring.layout)
    return y.transpose(1, 2), None


def mask(
    ring: Ring,
    *args: Any,
    q_length: Any = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **options: Any,
) -> None:
    """The mask function that transformers calls: returns None, or refuses what needs a mask tensor.

    Without this function, transformers would silently ignore a padding mask.
    """
    try:
        if local_size:  # 0: no layer has a window
            rows = options.get("cache_position") if q_length is None else q_length
            refuse_window("sliding_window", local_size, rows, ring)
        if use_vmap:
            raise UnsupportedError(
                "mask_function: got one, must be None: the ring masks by causality alone"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise UnsupportedError(
                "attention_mask: got one that hides rows, must hide none: the ring masks by "
                "causality alone; give sequences of one length without padding"
            )
    except BaracudaError as error:
        device = None if attention_mask is None else attention_mask.device
        tell(ring.group_name, error, options.get("device", device))
        raise


def refuse_window(name: str, window: Any, rows: Any, ring: Ring) -> None:
    """Raise for a window shorter than the whole sequence; `rows` are those of this rank."""
    if isinstance(rows, torch.Tensor):  # transformers < 5 gives the rows' cache positions
        rows = rows.shape[0] if rows.dim() else int(rows)
    total = None if rows is None else rows * ring.ranks()
    if total is None or window < total:
        raise UnsupportedError(
            f"{name}: got {window}, must be at least "
            f"{'' if total is None else f'{total}, '}the rows of the sequence: no kernel serves a "
            "window"
        )


def _refuse(
    ring: Ring,
    module: torch.nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    options: dict[str, Any],
) -> None:
    if attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask: got a tensor of shape {tuple(attention_mask.shape)}, must be None: "
            "the ring masks by causality alone"
        )
    if dropout:
        raise UnsupportedError(
            f"dropout: got {dropout}, must be 0; call model.eval(), or set config.attention_dropout"
        )
    for name in _VARIANTS:
        if options.get(name) is not None:
            raise UnsupportedError(
                f"{name}: got a value from the model, must be None: no kernel serves it"
            )
    refuse_packed(options)
    window = options.get("sliding_window", getattr(module, "sliding_window", None))
    if window:
        refuse_window("sliding_window", window, query.shape[-2], ring)


def refuse_packed(options: dict[str, Any]) -> None:
    """Raise for several sequences packed into one."""
    for name in PACKED:
        if options.get(name) is not None:
            raise UnsupportedError(
                f"{name}: got a value, must be left out: the ring attends to one sequence in each "
                "row of the batch"
            )


class _Compared:
    """The positions that were compared last: every layer of a model gets the same tensor."""

    def __init__(self) -> None:
        self._tensor: Any = lambda: None
        self._what: tuple[Any, ...] = ()
        self._rows: dict[tuple[Any, ...], torch.Tensor] = {}
        self._shapes: set[tuple[Any, ...]] = set()

    def same(self, positions: torch.Tensor, what: tuple[Any, ...]) -> bool:
        return self._tensor() is positions and self._what == (*what, positions._version)

    def keep(self, positions: torch.Tensor, what: tuple[Any, ...]) -> None:
        self._tensor, self._what = weakref.ref(positions), (*what, positions._version)

    def rows(self, what: tuple[Any, ...], device: torch.device) -> torch.Tensor:
        """This rank's positions, made once and kept on the device."""
        found = self._rows.get((what, device))
        if found is None:
            ring, rows, offset = what
            group = _process_group.resolve(ring.group_name)
            mine = sharding.positions(rows, group.rank(), group.size(), ring.layout)
            if len(self._rows) >= 64:
                self._rows.clear()
            found = self._rows[what, device] = torch.tensor(mine + offset, device=device)
        return found

    def first(self, what: tuple[Any, ...], device: torch.device) -> bool:
        new = (what, device) not in self._shapes
        self._shapes.add((what, device))
        return new

    def refused(self, what: tuple[Any, ...], device: torch.device) -> None:
        """Let the host compare the next positions too. An assertion on the device would end the
        process's CUDA context if it failed again."""
        self._shapes.discard((what, device))


_compared = _Compared()


def compare_positions(positions: torch.Tensor, rows: int, ring: Ring, offset: int = 0) -> None:
    """Raise for positions that are not those of this rank's rows.

    On CUDA the host compares in the first call of a length. In later calls the device compares,
    with an assertion, so that the host does not wait.
    """
    if torch.compiler.is_compiling() or positions.device.type not in ("cpu", "cuda"):
        return
    group = _process_group.resolve(ring.group_name)
    what = (ring, rows, offset)
    # A new group may have the name of a destroyed one.
    seen = (*what, group.rank(), group.size())
    if positions.shape[-1:] != (rows,):
        raise InvalidProblemError(
            f"position_ids: got shape {tuple(positions.shape)}, must end with the {rows} rows of "
            "this rank"
        )
    if positions.is_inference() or not _compared.same(positions, seen):
        expected = _compared.rows(what, positions.device)
        equal = (positions == expected).all()
        capturing = positions.is_cuda and torch.cuda.is_current_stream_capturing()
        if positions.is_cuda and (capturing or not _compared.first(seen, positions.device)):
            torch._assert_async(
                equal, "position_ids: got others, must be those of this rank's rows"
            )
        elif not bool(equal):
            _compared.refused(seen, positions.device)
            found, row = _first_difference(positions, expected)
            raise InvalidProblemError(
                f"position_ids: got {found} for row {row} of {rows}, must be {expected[row]}, as "
                f"interop.torch.position_ids gives it to rank {group.rank()} of {group.size()} in "
                f"the {ring.layout.lower()} layout; packed sequences and generate() are not served"
            )
        if not positions.is_inference():
            _compared.keep(positions, seen)


def _first_difference(positions: torch.Tensor, expected: torch.Tensor) -> tuple[Any, int]:
    """The first position that differs from the expected one, and its row."""
    given = positions.reshape(-1, positions.shape[-1])
    sequence, row = (given != expected).nonzero()[0].tolist()
    return given[sequence, row].item(), row
