from baracuda_kernels.ops.flash_sdpa._backward import FlashSdpaBackwardArgs, FlashSdpaBackwardPlan
from baracuda_kernels.ops.flash_sdpa._descriptor import FlashSdpaDescriptor
from baracuda_kernels.ops.flash_sdpa._plan import FlashSdpaArgs, FlashSdpaPlan

__all__ = [
    "FlashSdpaArgs",
    "FlashSdpaBackwardArgs",
    "FlashSdpaBackwardPlan",
    "FlashSdpaDescriptor",
    "FlashSdpaPlan",
]
