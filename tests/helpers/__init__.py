"""Shared by tests, besides `baracuda_kernels.testing`: rings of processes, the C ABI, fakes."""
