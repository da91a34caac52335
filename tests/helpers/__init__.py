"""What tests share besides `baracuda_kernels.testing`: rings of processes, the C ABI, fakes."""
