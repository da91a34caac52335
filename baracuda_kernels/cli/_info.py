"""``info``: the build, the machine, and the kernels that run here."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import click

from baracuda_kernels._core import _info, _nccl_library, _nccl_options
from baracuda_kernels._core._enums import Direction, ElementKind
from baracuda_kernels._machine import dotted, why_no_gpu
from baracuda_kernels.cli._console import json_option, print_json
from baracuda_kernels.errors import BaracudaError

if TYPE_CHECKING:
    from baracuda_kernels.registry import OpSpec


def version_of_build() -> str:
    """The compiled library's version."""
    return _info.version()


@click.command(short_help="What this build is, and what will run here.")
@json_option
def info(as_json: bool) -> None:
    """Version, build, CUDA, driver, devices, NCCL, and what will run here and why."""
    facts = gather()
    if as_json:
        print_json(facts)
        return
    for line in _lines(facts):
        click.echo(line)


def gather() -> dict[str, Any]:
    """All that ``info`` shows."""
    from baracuda_kernels import registry

    build = _info.build_info()
    devices = _info.devices()
    return {
        "version": build["version"],
        "python": platform.python_version(),
        "build": build,
        "driver_cuda_version": _info.driver_version(),
        "devices": devices,
        "gpu_reason": why_no_gpu(),
        "host": _info.host_info(),
        "nccl": _nccl_library.probe(),
        "exchange": _nccl_options.exchange_info(),
        "plugins_left_out": registry.left_out(),
        "runs_here": _runs_here(devices if build["cuda_built"] else []),
    }


def _runs_here(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from baracuda_kernels import registry

    places: list[tuple[str, Any]] = [
        (f"cuda:{d['index']}", d["compute_capability"]) for d in devices
    ]
    places.append(("host", "host"))
    return [
        {
            "op": spec.name,
            "direction": direction.name,
            "device": place,
            "dtype": dtype,
            **_verdict(spec, direction, arch, problem),
        }
        for spec in registry.specs()
        for direction in spec.directions
        for place, arch in places
        for dtype, problem in _problems(spec)
    ]


def _problems(spec: OpSpec) -> list[tuple[str, dict[str, Any]]]:
    """The default problem of `explain` in each dtype, as values of its options."""
    for option in spec.options:
        if option.type is ElementKind:
            return [(element.name, {option.name: element}) for element in spec.dtypes.values()]
    return [(", ".join(element.name for element in spec.elements), {})] if spec.options else []


def _verdict(
    spec: OpSpec, direction: Direction, arch: Any, problem: dict[str, Any]
) -> dict[str, Any]:
    try:
        explanation = spec.explain(spec.problem(**problem), arch, direction=direction)
    except BaracudaError as error:
        return {"family": None, "why": [str(error)]}
    except Exception as error:  # noqa: BLE001 - another package's op must not hide the rest
        return {"family": None, "why": [f"{type(error).__name__}: {error}"]}
    passed_over = []
    for candidate in explanation.candidates:
        if candidate is explanation.chosen or explanation.arch.is_host:
            break
        passed_over.append(f"{candidate.family} {candidate.reason}")
    return {"family": explanation.family, "why": passed_over}


def _defaults(op: str) -> str:
    """The default options that all rows of an op share."""
    from baracuda_kernels import registry

    shown = [
        f"{option.name} {option.default}"
        for option in registry.get(op).options
        if option.type is not ElementKind
        and option.default is not None
        and option.default is not False
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _lines(facts: dict[str, Any]) -> list[str]:
    build, host, nccl = facts["build"], facts["host"], facts["nccl"]
    lines = [
        (f"baracuda_kernels {facts['version']}, source {build['source_hash']}, "
         f"Python {facts['python']}"),
        f"built by: {build['cxx']}" + (f", nvcc {build['nvcc']}" if build["cuda_built"] else ""),
    ]
    if build["cuda_built"]:
        lines.append(
            f"CUDA runtime: {dotted(build['cuda_runtime_version'])} (static), "
            f"code for {' '.join(build['architectures'])}"
        )
    else:
        lines.append("CUDA: not in this build; the host kernels alone")
    if facts["driver_cuda_version"]:
        lines.append(f"driver: serves CUDA up to {dotted(facts['driver_cuda_version'])}")
    for device in facts["devices"]:
        major, minor = divmod(device["compute_capability"], 10)
        lines.append(
            f"cuda:{device['index']}: {device['name']}, compute capability {major}.{minor}, "
            f"{device['multiprocessors']} SMs, {device['total_bytes'] / 2**30:.1f} GiB"
        )
    if facts["gpu_reason"]:
        lines.append(f"no GPU will be used: {facts['gpu_reason']}")
    lines.append(f"host: {host['isa']}, {host['threads']} threads")
    if nccl["found"]:
        lines.append(f"NCCL: {nccl['version']} at {nccl['path']}")
    else:
        lines.append("NCCL: none was found; rings within one process work without it")
        lines.append(f"  ({nccl['reason'].removeprefix('NCCL: ')})")
    exchange = facts["exchange"]
    by_peer = exchange["no_peer_reason"] or "tried for each hop when a communicator asks for it"
    by_default = f"{exchange['default']} by default"
    if exchange["wrong_default"]:
        by_default = f"no communicator is made, by BARACUDA_EXCHANGE ({exchange['wrong_default']})"
    lines.append(f"exchange: {by_default}; copy engines: {by_peer}")
    for entry, reason in facts["plugins_left_out"].items():
        lines.append(f"plug-in left out: {entry} ({reason})")
    lines.append("what runs here (device, element type, kernel):")
    shown = None
    for row in facts["runs_here"]:
        op = row["op"], row["direction"]
        if op != shown:
            lines.append(f"  {row['op']} {row['direction'].lower()}{_defaults(row['op'])}")
            shown = op
        why = f"   ({'; '.join(row['why'])})" if row["why"] else ""
        lines.append(f"    {row['device']:7} {row['dtype']:5} {row['family'] or 'nothing'}{why}")
    return lines
