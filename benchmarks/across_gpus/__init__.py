"""What `benchmarks.scaling` measures on several GPUs of one host."""
