"""For `tests.helpers`, which benchmarks import too."""
