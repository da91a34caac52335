"""The preference that selects one kernel family, where it serves the problem."""

from __future__ import annotations

from baracuda_kernels import MathPrecision, PlanPreference, UnsupportedError
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.registry import Architecture

_STRICT = {
    "f16": MathPrecision.F32,
    "bf16": MathPrecision.F32,
    "f32": MathPrecision.F32,
    "f64": MathPrecision.F64,
}
_TENSOR_CORE = {"f16": MathPrecision.F16, "bf16": MathPrecision.BF16}
_DETERMINISTIC = "-deterministic"


def preference(family: str, dtype: str) -> PlanPreference:
    """A preference that leads `select` to one family, to check each kernel that an adapter may get.

    Where the family does not serve the problem, another one may meet the preference: with "sm90a",
    sm80 at head_dim 96. So compare the plan's `family`.

    Parameters
    ----------
    family : str
        "host", "simt", "sm80" or "sm90a". With "sm80-deterministic" and "sm90a-deterministic",
        gradients are summed in a fixed order.
    dtype : str
        "f16" or "bf16"; for host and simt also "f32" and "f64".

    Returns
    -------
    PlanPreference
        For `select` on a stream of the family's device.

    Raises
    ------
    InvalidProblemError
        If there is no such family, or it has no kernels of that dtype.
    UnsupportedError
        If `family` is sm90a and the compute capability of the current GPU is not 9.0.
    """
    name = family.removesuffix(_DETERMINISTIC)
    if name not in ("host", "simt", "sm80", "sm90a") or (name != family and name[:2] != "sm"):
        raise InvalidProblemError(f"family: got {family!r}, must be host, simt, sm80 or sm90a")
    precisions = _TENSOR_CORE if name in ("sm80", "sm90a") else _STRICT
    if dtype not in precisions:
        raise InvalidProblemError(f"dtype: got {dtype!r}, must be {', '.join(precisions)}")
    if name == "host":
        return PlanPreference()
    if name == "sm90a" and Architecture.here().compute_capability != 90:
        raise UnsupportedError("family: got sm90a, must be sm80 or simt on this GPU, not a Hopper")
    return PlanPreference(
        math_precision=precisions[dtype],
        allow_sm90a=name != "sm80",
        deterministic=True if name != family else None,
    )
