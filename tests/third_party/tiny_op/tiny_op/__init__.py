"""y = factor * x on the host, and its gradient: the smallest op with plans, SKUs and a spec."""

import dataclasses

import numpy as np

import baracuda_kernels as bk
from baracuda_kernels.registry import Candidate, OpKind, OpSpec, ProblemOption


class UnaryKind(OpKind, category=bk.OpCategory.UNARY_ELEMENTWISE):
    """Names of this category's ops; without them an op's number would do."""

    SCALE = 7


def _sku(direction):
    return bk.KernelSku(
        "UNARY_ELEMENTWISE", "SCALE", "F64", None, None, None, "HOST", "HOST",
        bk.PrecisionGuarantee("F64", "F64", True, True), direction,
    )


SKUS = {direction: _sku(direction) for direction in bk.Direction}


@dataclasses.dataclass(frozen=True)
class ScaleDescriptor:
    """Elements, and the factor on each."""

    length: int
    factor: float


class _Plan:
    """Made by :meth:`select`."""

    direction: bk.Direction

    def __init__(self, descriptor, sku):
        self.descriptor = descriptor
        self.sku = sku

    @classmethod
    def select(cls, stream, descriptor, preference=None):
        arch = "host" if stream.is_host else None
        explanation = SPEC.explain(descriptor, arch, preference, cls.direction)
        return cls(descriptor, explanation.require().sku)

    def _scale(self, **operands):
        length = self.descriptor.length
        (_, source), (_, target) = operands.items()
        views = bk.TensorRef(source), bk.TensorMut(target)
        for name, view in zip(operands, views, strict=True):
            if view.shape != (length,):
                raise bk.BufferTooSmallError(length, view.shape[0], name)
        np.asarray(views[1])[:] = self.descriptor.factor * np.asarray(views[0])


class ScalePlan(_Plan):
    """y = factor * x."""

    direction = bk.Direction.FORWARD

    def run(self, stream, x, y):
        """x, y: float64 arrays of ``length`` elements."""
        self._scale(x=x, y=y)


class ScaleBackwardPlan(_Plan):
    """dx = factor * dy."""

    direction = bk.Direction.BACKWARD

    def run(self, stream, dy, dx):
        """dy, dx: float64 arrays of ``length`` elements."""
        self._scale(dy=dy, dx=dx)


def skus():
    return [("tiny", sku) for sku in SKUS.values()]


def candidates(descriptor, arch, preference, direction):
    reason = "" if arch.is_host else f"arch: got {arch}, must be host"
    return [Candidate("tiny", SKUS[direction], reason)]


SPEC = OpSpec(
    "tiny_scale",
    ScaleDescriptor,
    {bk.Direction.FORWARD: ScalePlan, bk.Direction.BACKWARD: ScaleBackwardPlan},
    skus,
    candidates,
    options=(
        ProblemOption("length", int, 5, "Elements."),
        ProblemOption("factor", float, 3.0, "On each element."),
    ),
)
