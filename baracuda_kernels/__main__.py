"""``python -m baracuda_kernels``: the command line."""

from baracuda_kernels.cli import main

if __name__ == "__main__":
    main(prog_name="python -m baracuda_kernels")
