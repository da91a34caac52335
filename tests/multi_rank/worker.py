"""One rank of a NCCL ring: reads tasks as JSON lines, answers each with one JSON line.

Started by helpers.rank_pool, one process per rank.
"""

from __future__ import annotations

import base64
import ctypes as ct
import importlib
import os
import sys
import time
from pathlib import Path

# For `helpers`: this file is run by its path.
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from helpers import cuda_ring
from helpers import ring_abi as abi
from helpers.cuda_sum import CudaSumRank
from helpers.rank_tasks import own_device, serve
from helpers.ring_gradient_tasks import RingGradientTasks, prepared, register
from helpers.rings import descriptor, preference, rank_arrays, shards_of
from helpers.sum_ring import SumRing

import baracuda_kernels as bk
from baracuda_kernels._core import _nccl_library
from baracuda_kernels.testing import torch_qkv

_TIMEOUT = 60.0


class Rank(RingGradientTasks):
    """What a worker keeps between tasks: its communicators."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.comms: dict[str, bk.Communicator] = {}
        self.device = own_device()
        torch.cuda.set_device(self.device)

    def call(self, task: dict) -> dict:
        """What the function "module:name" answers to this rank's communicator and the task."""
        module, _, name = task["function"].partition(":")
        return getattr(importlib.import_module(module), name)(self.comms["own"], task)

    def unique_id(self, task: dict) -> dict:
        return {"unique_id": base64.b64encode(bk.UniqueId.new().bytes).decode()}

    def join(self, task: dict) -> dict:
        token = bk.UniqueId.from_bytes(base64.b64decode(task["unique_id"]))
        earlier = self.comms.pop("own", None)
        if earlier is not None:
            earlier.close()
        before = torch.cuda.mem_get_info()[0]
        os.environ["BARACUDA_PEER_WAIT"] = task.get("wait", "")
        exchange = task.get("exchange")
        if isinstance(exchange, list):
            exchange = exchange[self.rank]
        try:
            comm = bk.Communicator.init_rank(
                task["world_size"], token, self.rank, device=self.device, exchange=exchange,
                timeout=_TIMEOUT,
            )  # fmt: skip
        except bk.UnsupportedError as error:
            return {"error": str(error)}
        assert (comm.rank, comm.world_size) == (self.rank, task["world_size"])
        self.comms["own"] = comm
        return {
            "communicator_bytes": before - torch.cuda.mem_get_info()[0],
            "exchange": [hop.kind for hop in comm.exchange],
            "reasons": [hop.reason for hop in comm.exchange],
        }

    def register_alien(self, task: dict) -> dict:
        """Memory that no other process can open, on one rank: what error every rank gets."""
        comm = self.comms["own"]
        buffer = torch.empty(1 << 22, dtype=torch.uint8, device="cuda")
        if self.rank == task["alien"]:
            from cuda.core import Device

            device = Device(self.device)
            device.set_current()
            # Of the device's pool.
            self.pooled = device.allocate(1 << 22, stream=device.create_stream())
            buffer = bk.TensorRef(int(self.pooled.handle), (1 << 22,), element="U8",
                                  device=self.device)  # fmt: skip
        try:
            comm.register(buffer)
        except bk.BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error), "state": comm.state}
        return {"error": ""}

    def join_torch(self, task: dict) -> dict:
        """A communicator through a torch process group: our own, or the group's, borrowed."""
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group(
                task["backend"],
                init_method=f"file://{task['folder']}/rendezvous-{task['name']}",
                rank=self.rank,
                world_size=task["world_size"],
                device_id=torch.device("cuda", self.device) if task["backend"] == "nccl" else None,
            )
        comm = bk.Communicator.from_torch(
            borrow=task["borrow"], device=self.device, timeout=_TIMEOUT
        )
        self.comms[task["name"]] = comm
        return {"rank": comm.rank, "world_size": comm.world_size, "owned": comm.owned}

    def leave_torch(self, task: dict) -> dict:
        import torch.distributed as dist

        self.comms.pop(task["name"]).close()
        dist.destroy_process_group()
        return {}

    def interleave(self, task: dict) -> dict:
        """Collectives of the group's own communicator before and after every run.

        K and V come by an all-gather of the group, which the stream waits for before the run; y
        leaves by another, which the group's stream starts after it. Nothing waits on the host.
        """
        import torch.distributed as dist

        comm = self.comms[task["name"]]
        q, k, v = torch_qkv("normal", "bf16", task["seed"], **task["shape"])
        mine = shards_of(q, k, v, comm.world_size, "contiguous")[comm.rank]
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            stream = bk.Stream(torch.cuda.current_stream())
            plan = bk.RingAttentionPlan.select(
                stream, descriptor(*mine[:2], "bf16"), preference("sm80", "bf16")
            )
            kv = torch.full_like(torch.stack(mine[1:]), float("nan"))
            arrays = rank_arrays(torch, plan, mine[0], kv[0], kv[1], comm.world_size)
            sent = torch.stack(mine[1:])
            gathered = kv.new_empty(comm.world_size, *kv.shape)
            answers = arrays.y.new_empty(task["runs"], comm.world_size, *arrays.y.shape)
            for number in range(task["runs"]):
                gathered.fill_(float("nan"))
                work = dist.all_gather_into_tensor(gathered, sent, async_op=True)
                work.wait()  # the stream waits, not the host
                kv.copy_(gathered[comm.rank])
                plan.run(stream, comm, arrays.args)
                work = dist.all_gather_into_tensor(answers[number], arrays.y, async_op=True)
                work.wait()  # before the next run writes y
            comm.synchronize(stream)
        raw = answers.view(torch.int16).flatten(1)
        answers[0, comm.rank].view(torch.uint8).cpu().numpy().tofile(
            Path(task["folder"]) / f"y-{self.rank}.bin"
        )
        return {"differing": int((raw != raw[:1]).any(1).sum())}

    def sums(self, task: dict) -> dict:
        """The test op of helpers.sum_ring over NCCL, twice a ring."""
        lib = abi.library()
        cuda_ring.check(lib.baracuda_nccl_load(_nccl_library.library_path().encode()))
        token, comm = base64.b64decode(task["unique_id"]), ct.c_void_p()
        size = task["world_size"]
        cuda_ring.check(
            lib.baracuda_nccl_init_rank(size, token, self.rank, self.device, 8, _TIMEOUT, comm)
        )
        endpoint = lib.baracuda_nccl_endpoint(comm).contents
        right = []
        for options in task["rings"]:
            rank = CudaSumRank(torch, SumRing(size, **options), self.rank)
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(2):
                    rank.poison()
                    call = rank.call(endpoint, torch.cuda.current_stream().cuda_stream)
                    cuda_ring.check(lib.baracuda_ring_run(ct.byref(call), 1))
                    right.append(rank.is_right())
        cuda_ring.check(lib.baracuda_nccl_destroy(comm))
        return {"right": right}

    def split(self, task: dict) -> dict:
        """Even and odd ranks apart, each half in reversed order."""
        half = self.comms["own"].split(self.rank % 2, -self.rank)
        self.comms["half"] = half
        return {"rank": half.rank, "world_size": half.world_size}

    def run_alone(self, task: dict) -> dict:
        """Run our part while nobody else does: what error comes, and what is left after it."""
        comm = self.comms["own"]
        qkv = torch_qkv("normal", "bf16", 0, heads=2, query_len=128, head_dim=64)
        stream = bk.Stream(torch.cuda.Stream())
        plan, args, _held = prepared(comm, stream, task, *qkv)
        torch.cuda.synchronize()

        def attempt() -> str:
            try:
                plan.run(stream, comm, args)
                comm.synchronize(stream, task["seconds"])
            except bk.BaracudaError as error:
                answer.setdefault("rank", getattr(error, "rank", None))
                return type(error).__name__
            return "no error"

        answer: dict = {}
        answer["error"] = attempt()
        answer["state"] = comm.state
        answer["again"] = attempt()
        return answer

    def refuse(self, task: dict) -> dict:
        """A run that rank 1 refuses, at once or when the others have begun it, and one of all ranks:
        the errors, and how long after the refusal they came."""
        comm = self.comms["own"]
        q, k, v = torch_qkv("normal", "bf16", 0, heads=2, query_len=128, head_dim=64)
        stream = bk.Stream(torch.cuda.Stream())
        plan = bk.RingAttentionPlan.select(
            descriptor(q, k, "bf16"), stream, preference("sm80", "bf16")
        )
        arrays = rank_arrays(torch, plan, q, k, v, comm.world_size)
        wrong = bk.RingAttentionArgs(**{**arrays.held, "k": q.float(), "v": q.float()})
        torch.cuda.synchronize()
        plan.validate(comm, arrays.args)

        def attempt(args: bk.RingAttentionArgs) -> tuple[str, str]:
            try:
                plan.run(stream, comm, args)
                comm.synchronize(stream)
            except bk.BaracudaError as error:
                return type(error).__name__, str(error)
            return "", ""

        odd = self.rank == 1
        if odd == task["late"]:
            time.sleep(1.0)
        start = time.time()
        error, message = attempt(wrong if odd else arrays.args)
        seconds = time.time() - start
        time.sleep(0.5)
        state = comm.state
        again, _ = attempt(arrays.args)
        right = not again and bool(torch.isfinite(arrays.y).all())
        return {"error": error, "message": message, "seconds": seconds, "state": state,
                "again": again, "right": right}  # fmt: skip

    def endure(self, task: dict) -> dict:
        """Run again and again until an error comes: which, when, and what is left after it."""
        comm = self.comms["own"]
        head_dim = task["head_dims"].get(str(self.rank), 64)
        qkv = torch_qkv("normal", "bf16", 0, heads=2, query_len=128, head_dim=head_dim)
        stream = bk.Stream(torch.cuda.Stream())
        plan, args, held = prepared(comm, stream, task, *qkv)
        torch.cuda.synchronize()
        try:
            if task.get("register"):
                register(comm, held)
            if task.get("validate"):
                plan.validate(comm)
            end = time.monotonic() + 60
            while time.monotonic() < end:
                plan.run(stream, comm, args)
                comm.synchronize(stream, task["seconds"])
        except bk.BaracudaError as error:
            at = time.time()
            again = ""
            if comm.state != "healthy":
                try:
                    plan.run(stream, comm, args)
                except bk.BaracudaError as refusal:
                    again = type(refusal).__name__
            return {"error": type(error).__name__, "message": str(error), "at": at,
                    "again": again, "state": comm.state}  # fmt: skip
        return {"error": "no error", "at": time.time(), "again": "", "state": comm.state}

    def join_alone(self, task: dict) -> dict:
        """Join a ring of two whose other rank never comes."""
        try:
            bk.Communicator.init_rank(
                2, bk.UniqueId.new(), 0, device=self.device, timeout=task["seconds"]
            )
        except bk.BaracudaError as error:
            return {"error": type(error).__name__}
        return {"error": "no error"}

    def ring(self, task: dict) -> dict:
        """Run this rank's part of a ring; y and lse go to the task's folder, as raw bytes."""
        comm = self.comms[task.get("comm", "own")]
        q, k, v = torch_qkv("normal", task["dtype"], task["seed"], **task["shape"])
        layout = task["layout"]
        shards = shards_of(q, k, v, comm.world_size, layout)
        desc = descriptor(
            *shards[comm.rank][:2],
            task["dtype"],
            is_causal=task["is_causal"],
            sequence_layout=bk.SequenceLayout.parse(layout),
        )
        stream = bk.Stream(torch.cuda.current_stream())
        plan = bk.RingAttentionPlan.select(stream, desc, preference("sm80", task["dtype"]))
        arrays = rank_arrays(
            torch, plan, *shards[comm.rank], comm.world_size, staged=task["staged"]
        )
        used = []
        if task.get("register"):
            register(comm, arrays.held)
        staging = torch.cat([x.reshape(-1) for x in shards[comm.rank][1:]])

        def run() -> None:
            if task["staged"]:  # a run consumes what was staged
                arrays.held["kv_scratch_a"].copy_(staging)
            plan.run(bk.Stream(torch.cuda.current_stream()), comm, arrays.args)

        if task.get("graph"):
            run()
            comm.synchronize(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()

            def run() -> None:
                for x in (arrays.y, arrays.lse):
                    x.fill_(float("nan"))
                graph.replay()

        for number in range(task.get("runs", 1)):
            time.sleep(task.get("late", 0) if comm.rank == task.get("late_rank") else 0)
            run()
            if task.get("overwrite"):  # the scratch is the caller's between runs
                for name in ("kv_scratch_a", "kv_scratch_b"):
                    arrays.held[name].fill_(float("nan"))
            if number in (1, task.get("runs", 1) - 1):
                comm.synchronize(stream)
                used.append(torch.cuda.mem_get_info()[0])
        comm.synchronize(stream)
        for name, x in (("y", arrays.y), ("lse", arrays.lse)):
            raw = x.contiguous().view(torch.uint8).cpu().numpy()
            raw.tofile(Path(task["folder"]) / f"{name}-{self.rank}.bin")
        return {"rank": comm.rank, "free_bytes": used}


def main(kind: type[Rank] = Rank) -> None:
    rank = kind(int(sys.argv[1]))
    serve(rank)
    for comm in rank.comms.values():
        comm.close()


if __name__ == "__main__":
    main()
