"""y = factor * x on the host: the smallest op that a plan, a SKU and a registry entry make."""

import dataclasses

import numpy as np

import baracuda_kernels as bk
from baracuda_kernels.registry import Candidate, OpSpec

SKU = bk.KernelSku(
    "UNARY_ELEMENTWISE", 7, "F64", None, None, None, "HOST", "HOST",
    bk.PrecisionGuarantee("F64", "F64", True, True),
)


@dataclasses.dataclass(frozen=True)
class ScaleDescriptor:
    """Elements, and the factor on each."""

    length: int
    factor: float


class ScalePlan:
    """Made by :meth:`select`."""

    def __init__(self, descriptor, sku):
        self.descriptor = descriptor
        self.sku = sku

    @classmethod
    def select(cls, stream, descriptor, preference=None):
        arch = "host" if stream.is_host else None
        return cls(descriptor, SPEC.explain(descriptor, arch, preference).require().sku)

    def run(self, stream, x, y):
        """x, y: float64 arrays of ``length`` elements."""
        source, target = bk.TensorRef(x), bk.TensorMut(y)
        for name, view in (("x", source), ("y", target)):
            if view.shape != (self.descriptor.length,):
                raise bk.BufferTooSmallError(self.descriptor.length, view.shape[0], name)
        np.asarray(target)[:] = self.descriptor.factor * np.asarray(source)


def _candidates(descriptor, arch, preference):
    reason = "" if arch.is_host else f"runs on the host only, {arch} was asked for"
    return [Candidate("tiny", SKU, reason)]


SPEC = OpSpec("tiny_scale", ScaleDescriptor, ScalePlan, lambda: [("tiny", SKU)], _candidates)
