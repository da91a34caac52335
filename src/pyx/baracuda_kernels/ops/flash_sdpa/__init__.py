"""Scaled dot-product attention on one device: the ring's kernels without the ring."""

from baracuda_kernels import registry
from baracuda_kernels.ops.flash_sdpa._backward import FlashSdpaBackwardArgs, FlashSdpaBackwardPlan
from baracuda_kernels.ops.flash_sdpa._descriptor import FlashSdpaDescriptor
from baracuda_kernels.ops.flash_sdpa._plan import SPEC, FlashSdpaArgs, FlashSdpaPlan

__all__ = [
    "FlashSdpaArgs",
    "FlashSdpaBackwardArgs",
    "FlashSdpaBackwardPlan",
    "FlashSdpaDescriptor",
    "FlashSdpaPlan",
]

registry.register(SPEC)
