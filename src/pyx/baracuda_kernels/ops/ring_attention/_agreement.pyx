# cython: language_level=3
"""The facts on which the ranks of a ring must agree, as a message of fixed size."""

from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._info import build_info

# The size is fixed, so that ranks can read each other's messages whatever they differ in.
MESSAGE_BYTES = 1024
_RANK = "rank"


def encode(descriptor, direction, args=None, rank=None):
    """This rank's message, padded to MESSAGE_BYTES; with `rank` it says whose it is."""
    import json  # here and not above: it is 5 % of the package's import, and seldom needed

    fields = {"library version": build_info()["version"], "direction": direction.name,
              "schedule": "ring"}
    for name, value in descriptor.to_dict().items():
        # A float's hex form is exact.
        fields[name] = value.hex() if isinstance(value, float) else value
    if rank is not None:
        fields[_RANK] = rank
    if args is not None:
        fields["staging"] = "kv_scratch_a" if args.k is None else "in place"
        if args.k is not None:
            fields |= orders(descriptor, args)
    message = json.dumps(fields).encode()
    if len(message) > MESSAGE_BYTES:
        raise InvalidProblemError(
            f"descriptor: got a description of {len(message)} bytes, must be at most "
            f"{MESSAGE_BYTES}")
    return message.ljust(MESSAGE_BYTES)


def orders(descriptor, args):
    """The orders of K's and V's dimensions in memory. Dense chunks of equal orders lie alike."""
    extents = (descriptor.batch_size, descriptor.num_kv_heads, descriptor.key_len,
               descriptor.head_dim)
    return {f"order of {name}'s dimensions": _order(extents, view)
            for name, view in (("k", args.k), ("v", args.v))}


def _order(extents, view):
    """The dimensions, outermost first, without those of size 1; "" for a chunk without elements."""
    if 0 in extents:
        return ""
    # Staged chunks and bytes are in row-major order.
    strides = view.strides if view is not None and view.ndim == 4 else (3, 2, 1, 0)
    moving = [i for i in range(4) if extents[i] > 1]
    return "".join(["BHSD"[i] for i in sorted(moving, key=lambda i: -strides[i])])


def require(world_size, messages):
    """Raise InvalidProblemError if a rank's message differs from that of rank 0."""
    sides = [_decode(rank, message) for rank, message in enumerate(messages)]
    for rank, side in enumerate(sides):
        said = side.pop(_RANK, rank)
        if said != rank:
            raise InvalidProblemError(
                f"rank {rank}: got the message of rank {said}, must be its own: do two ranks have "
                "the same number?")
    first = sides[0]
    for rank in range(1, world_size):
        for name in {**first, **sides[rank]}:
            mine, theirs = first.get(name, "not given"), sides[rank].get(name, "not given")
            if mine != theirs:
                raise InvalidProblemError(
                    f"rank {rank}: {name}: got {_shown(theirs)}, must be {_shown(mine)} as on rank "
                    "0")


def _decode(rank, message):
    import json

    try:
        side = json.loads(message)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deep
        side = None
    if not isinstance(side, dict):
        raise InvalidProblemError(
            f"rank {rank}: got the message {message[:32]!r}..., must be what validate() sends")
    return side


def _shown(value):
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        try:
            return float.fromhex(value)
        except ValueError:
            return value
    return value
