# cython: language_level=3
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

cdef class FlashSdpaDescriptor(AttentionDescriptor):
    pass
