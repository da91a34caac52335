"""The command line ``baracuda-kernels``: run, sample, bench, info, skus, explain, predict."""

from __future__ import annotations

import click

from baracuda_kernels.cli._bench import bench
from baracuda_kernels.cli._console import TypedErrorGroup
from baracuda_kernels.cli._explain import explain
from baracuda_kernels.cli._info import info, version_of_build
from baracuda_kernels.cli._predict import predict
from baracuda_kernels.cli._run import run
from baracuda_kernels.cli._sample import sample
from baracuda_kernels.cli._skus import skus

__all__ = ["main"]


@click.group(cls=TypedErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version_of_build(), prog_name="baracuda-kernels")
def main() -> None:
    """Ring Attention on the command line: try it, and ask which kernel runs where, and why.

    Every command takes --json: one JSON object on stdout; errors as one JSON object on stderr. In
    it, infinite values and NaN are the texts "Infinity", "-Infinity" and "NaN"; an infinite rate or
    memory of a machine that `predict` was given is null. A command that refuses its input ends with
    exit code 2, one that cannot write its answer with 1.
    """


for _command in (run, sample, bench, info, skus, explain, predict):
    main.add_command(_command)
