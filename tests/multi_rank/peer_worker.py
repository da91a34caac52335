"""A rank of tests/multi_rank/test_peer_faults.py: what goes wrong around hops by copy engine."""

from __future__ import annotations

import base64
import ctypes as ct
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# For `helpers`: this file is run by its path.
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from helpers import ring_abi as abi
from helpers.cuda_peers import CudaPeers
from helpers.cuda_ring import check
from helpers.cuda_sum import CudaSumRank
from helpers.rings import descriptor, preference, rank_arrays, shards_of
from helpers.sum_ring import SumRing
from worker import Rank, main, register

import baracuda_kernels as bk
from baracuda_kernels._core import _nccl_library
from baracuda_kernels.testing import torch_qkv


def comes_true(condition: Any, seconds: float) -> bool:
    """Whether it does within that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


class PeerRank(Rank):
    """With tasks that end, stop or crowd a ring by peer."""

    runs_left_out = 0

    def _small(self, rows: int = 128) -> tuple[Any, Any, Any]:
        """A stream, a plan and a rank's arrays, registered."""
        comm = self.comms["own"]
        q, k, v = torch_qkv("normal", "bf16", 0, heads=2, query_len=rows, head_dim=64)
        stream = torch.cuda.Stream()
        plan = bk.RingAttentionPlan.select(
            descriptor(q, k, "bf16"), bk.Stream(stream), preference("sm80", "bf16")
        )
        arrays = rank_arrays(torch, plan, q, k, v, comm.world_size)
        torch.cuda.synchronize()
        register(comm, arrays.held)
        return stream, plan, arrays

    def ring(self, task: dict) -> dict:
        """From a stream of a priority where the task names one."""
        if "priority" not in task:
            return super().ring(task)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream(priority=task["priority"])):
            return super().ring(task)

    def unregistered(self, task: dict) -> dict:
        """How a run with buffers of its own goes, and what is said of it before."""
        comm = self.comms["own"]
        q, k, v = torch_qkv("normal", "bf16", 0, heads=2, query_len=128, head_dim=64)
        stream = bk.Stream(torch.cuda.current_stream())
        plan = bk.RingAttentionPlan.select(
            descriptor(q, k, "bf16"), stream, preference("sm80", "bf16")
        )
        arrays = rank_arrays(torch, plan, q, k, v, comm.world_size)

        def attempt(call: Any) -> str:
            try:
                call()
            except bk.BaracudaError as error:
                return f"{type(error).__name__}: {error}"
            return ""

        def hops() -> list[tuple[str, str]]:
            return [(hop.kind, hop.reason) for hop in timeline.hops]

        timeline = bk.RingTimeline()
        can = attempt(lambda: plan.can_implement(arrays.args, comm=comm))
        ran = attempt(lambda: plan.run(stream, comm, arrays.args, timeline=timeline))
        before = hops() if not ran else []
        time.sleep(0.3)  # whoever is told of a refusal has been by then
        register(comm, arrays.held)
        plan.can_implement(arrays.args, comm=comm)
        plan.run(stream, comm, arrays.args, timeline=timeline)
        comm.synchronize(stream)
        return {"can": can, "ran": ran, "before": before, "after": hops()}

    def unloaded(self, task: dict) -> dict:
        """A run that waits for a rank that does not come, behind it a kernel that nobody has loaded
        yet, and an abort by another thread: how long until the launch came back, and the error."""
        comm = self.comms["own"]
        stream, plan, arrays = self._small()
        x = torch.rand(1024, device="cuda")
        torch.cuda.synchronize()
        if comm.rank != 0:
            end = time.monotonic() + 20
            while comm.state == "healthy" and time.monotonic() < end:
                time.sleep(0.01)
            return {"state": comm.state}
        timer = threading.Timer(1.0, comm.abort)
        begin = time.monotonic()
        timer.start()
        with torch.cuda.stream(stream):
            plan.run(bk.Stream(stream), comm, arrays.args)
            torch.erfinv(x)
        launched = time.monotonic() - begin
        timer.join()
        try:
            comm.synchronize(bk.Stream(stream), 10)
            error = ""
        except bk.BaracudaError as failure:
            error = type(failure).__name__
        stream.synchronize()
        return {"launched": launched, "error": error, "seconds": time.monotonic() - begin,
                "state": comm.state}  # fmt: skip

    def interrupted(self, task: dict) -> dict:
        """Rank 0 registers a buffer that the others do not, and gets a Ctrl-C."""
        comm = self.comms["own"]
        if comm.rank != 0:
            time.sleep(2)
            comm.abort()
            return {}
        buffer = torch.empty(1 << 22, dtype=torch.uint8, device="cuda")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            comm.register(buffer)
            error = ""
        except KeyboardInterrupt:
            error = "KeyboardInterrupt"
        return {"error": error, "seconds": time.monotonic() - begin, "state": comm.state}

    def prefetch(self, task: dict) -> dict:
        """Runs beside a collective of another communicator, which even ranks wait for after the run
        and odd ones before it: as a layer's weights are gathered ahead beside the layer before."""
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group(
                "nccl", init_method=f"file://{task['folder']}/rendezvous",
                rank=self.rank, world_size=task["world_size"],
                device_id=torch.device("cuda", self.device),
            )  # fmt: skip
        comm = self.comms["own"]
        q, k, v = torch_qkv("normal", "bf16", 3, **task["shape"])
        mine = shards_of(q, k, v, comm.world_size, "contiguous")[comm.rank]
        stream = bk.Stream(torch.cuda.current_stream())
        plan = bk.RingAttentionPlan.select(
            descriptor(*mine[:2], "bf16"), stream, preference("sm80", "bf16")
        )
        kv = torch.full_like(torch.stack(mine[1:]), float("nan"))
        arrays = rank_arrays(torch, plan, mine[0], kv[0], kv[1], comm.world_size)
        register(comm, arrays.held)
        sent = torch.stack(mine[1:])
        weights = torch.full((1 << 20,), float(comm.rank), device="cuda")
        gathered = weights.new_empty(comm.world_size, *weights.shape)
        answers = arrays.y.new_empty(task["runs"], *arrays.y.shape)
        right = True
        for number in range(task["runs"]):
            gathered.fill_(float("nan"))
            work = dist.all_gather_into_tensor(gathered, weights, async_op=True)
            if comm.rank % 2:
                work.wait()
            kv.copy_(sent)
            plan.run(stream, comm, arrays.args)
            work.wait()
            answers[number] = arrays.y
            right &= bool((gathered[:, 0].sum() == sum(range(comm.world_size))).item())
        comm.synchronize(stream)
        raw = answers.view(torch.int16).flatten(1)
        finite = bool(torch.isfinite(answers).all())
        return {"differing": int((raw != raw[:1]).any(1).sum()), "right": right and finite}

    def _endpoint(self, task: dict) -> tuple[Any, Any]:
        """A NCCL communicator of the C ABI, made once, and its endpoint."""
        lib = abi.library()
        if not hasattr(self, "raw"):
            check(lib.baracuda_nccl_load(_nccl_library.library_path().encode()))
            token, self.raw = base64.b64decode(task["unique_id"]), ct.c_void_p()
            check(
                lib.baracuda_nccl_init_rank(
                    task["world_size"], token, self.rank, self.device, 8, 60.0, self.raw
                )
            )
        return lib, lib.baracuda_nccl_endpoint(self.raw).contents

    def sums(self, task: dict) -> dict:
        """The test op of helpers.sum_ring by peer, twice a ring."""
        lib, endpoint = self._endpoint(task)
        right = []
        for options in task["rings"]:
            peers = CudaPeers(endpoint, task["wait"])
            rank = CudaSumRank(torch, SumRing(task["world_size"], **options), self.rank)
            peers.register(rank.beside, rank.behind)
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(2):
                    rank.poison()
                    call = rank.call(endpoint, torch.cuda.current_stream().cuda_stream)
                    check(lib.baracuda_ring_run(ct.byref(call), 1))
                    right.append(rank.is_right())
            peers.close()
        return {"right": right}

    def left_out(self, task: dict) -> dict:
        """Runs of which rank 0 leaves one wait after the other out, while the other ranks are late
        with all that they do: they begin once it has enqueued all of its run and had time for what
        waits for nothing, and poison what they receive into then."""
        lib, endpoint = self._endpoint(task)
        first = self.rank == 0
        cycles = 20_000_000
        folder = Path(task["folder"])

        def pause(handle: int) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(handle)):
                torch.cuda._sleep(cycles)

        ring = SumRing(task["world_size"])
        found = []
        for dropped in range(-1, task["waits"]):
            peers = CudaPeers(
                endpoint, task["wait"], dropped=dropped if first else -1,
                pause=None if first else pause,
            )  # fmt: skip
            rank = CudaSumRank(torch, ring, self.rank)
            peers.register(rank.beside, rank.behind)
            peers.watch()
            stream = torch.cuda.Stream()
            torch.cuda.synchronize()
            self.runs_left_out += 1
            enqueued = folder / f"enqueued-{self.runs_left_out}"
            if not first:
                assert comes_true(enqueued.exists, 20), "rank 0 does not come to enqueue its run"
                time.sleep(0.1)
            with torch.cuda.stream(stream):
                rank.poison()
                call = rank.call(endpoint, stream.cuda_stream)
                begun = time.monotonic()
                check(lib.baracuda_ring_run(ct.byref(call), 1))
                seconds = time.monotonic() - begun
                if first:
                    enqueued.touch()
                # A run that goes ahead may take what another waits for.
                ended = comes_true(stream.query, 1.5)
                if not ended:
                    peers.abort()
                right = rank.is_right() and ended
            torch.cuda.synchronize()
            peers.close()
            found.append({"right": right, "ended": ended, "waited": peers.waited, "seconds": seconds})
        return {"found": found}

    def leave(self, task: dict) -> dict:
        """End the interpreter with the communicator open: unused, after runs, or in one that the
        others do not come to."""
        stream, plan, arrays = self._small()
        if task["how"] == "after runs":
            for _ in range(3):
                plan.run(bk.Stream(stream), self.comms["own"], arrays.args)
        elif task["how"] == "in a run" and self.rank == 0:
            plan.run(bk.Stream(stream), self.comms["own"], arrays.args)
        elif task["how"] == "in a run":
            time.sleep(1)
        sys.exit(0)


if __name__ == "__main__":
    main(PeerRank)
