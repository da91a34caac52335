"""How ranks agree before they make a ring together: a rank that cannot join tells the others."""

from baracuda_kernels._core import _nccl_library, _nccl_options
from baracuda_kernels._core._errors import BaracudaError, CommunicatorError
from baracuda_kernels._core._unique_id import UniqueId


def attempt(prepare):
    """What this rank tells the others: the result of prepare(), or the error that it raised."""
    try:
        return prepare()
    except BaracudaError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the others must hear of any
        return CommunicatorError(f"communicator: {type(error).__name__}: {error}")


def agreed(everyone, rank):
    """What all ranks told. If one told an error, every rank raises: that rank its own error, the
    others a :class:`CommunicatorError` that names it."""
    failed = [r for r, said in enumerate(everyone) if isinstance(said, BaseException)]
    if rank in failed:
        raise everyone[rank]
    for other in failed:
        error = everyone[other]
        raise CommunicatorError(
            f"communicator: rank {other} of {len(everyone)} cannot join: "
            f"{type(error).__name__}: {error}"
        ) from error
    return everyone


def ready_to_join(rank, device, max_ctas, exchange, timeout):
    """Do everything that can fail on one rank alone; returns the new id's bytes on rank 0, else
    None."""
    _nccl_options.check_options(device, max_ctas, exchange, timeout)
    _nccl_library.load()
    return UniqueId.new().bytes if rank == 0 else None
