from baracuda_kernels.ops.flash_sdpa._descriptor import FlashSdpaDescriptor
from baracuda_kernels.ops.flash_sdpa._plan import FlashSdpaArgs, FlashSdpaPlan

__all__ = ["FlashSdpaArgs", "FlashSdpaDescriptor", "FlashSdpaPlan"]
