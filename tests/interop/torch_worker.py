"""One rank of a torch process group: runs the adapter and compares with the whole, for the tests.

Started by helpers.rank_pool. Every rank draws the same whole sequence, so each can compare what it
has gathered with the answer of a single process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

# For `helpers` and the modules beside this file: it is run by its path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch
import torch.distributed as dist
from context_tasks import ContextTasks
from coverage_tasks import CoverageTasks
from cuda_tasks import CudaTasks
from failure_tasks import FailureTasks
from gradient_tasks import GradientTasks
from helpers.rank_tasks import own_device, serve
from torch.nn import functional
from trainer_tasks import TrainerTasks
from training_failure_tasks import TrainingFailureTasks
from training_tasks import TrainingTasks
from transformers_tasks import TransformersTasks

from baracuda_kernels import Communicator, DeviceSlice
from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import (
    _process_group,
    clear_cache,
    context_parallel,
    position_ids,
    ring_attention,
    shard,
    unshard,
)

_INNER = {"bhsd": 2, "bshd": 1}


class Rank(
    ContextTasks,
    CoverageTasks,
    CudaTasks,
    FailureTasks,
    GradientTasks,
    TrainerTasks,
    TrainingFailureTasks,
    TrainingTasks,
    TransformersTasks,
):
    def __init__(self, rank: int) -> None:
        self.rank = rank
        torch.set_num_threads(1)

    def unique_id(self, task: dict) -> dict:
        return {"unique_id": None}

    def join(self, task: dict) -> dict:
        on_gpu = task["backend"] == "nccl"
        self.device = torch.device("cuda", own_device()) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            task["backend"],
            init_method=f"file://{task['folder']}/rendezvous",
            rank=self.rank,
            world_size=task["world_size"],
            device_id=self.device if on_gpu else None,
        )
        return {}

    def leave(self) -> None:
        clear_cache()
        dist.destroy_process_group()

    def attend(self, task: dict) -> dict:
        """Relative error of y and largest error of lse against one process's own attention."""
        q, k, v = self._whole(task)
        call = {"eager": _attend, "inference": torch.inference_mode()(_attend)}.get(task["mode"])
        if call is None:
            call = torch.compile(_attend, fullgraph=True, backend=task["mode"])
        layout, tensor_layout = task["layout"], task["tensor_layout"]
        shards = [_arrange(shard(x, 2, None, layout), tensor_layout) for x in (q, k, v)]
        y, lse = call(*shards, task["is_causal"], layout, tensor_layout)
        y = unshard(y, _INNER[tensor_layout], None, layout)
        if tensor_layout == "bshd":
            y = y.transpose(1, 2)
        exact, exact_lse = _exact(q, k, v, task["is_causal"])
        lse = unshard(lse, 2, None, layout)
        off = (lse.double() - exact_lse).abs().max().item()
        return {"relative": _relative(y, exact), "lse": off, "dtype": str(y.dtype)}

    def patched(self, task: dict) -> dict:
        """An unmodified call of SDPA within `context_parallel`, eager or compiled."""
        q, k, v = self._whole(task)
        layout = task["layout"]

        def model(q, k, v):
            return functional.scaled_dot_product_attention(
                q, k, v, is_causal=task["is_causal"], enable_gqa=True
            )

        if task["mode"] != "eager":
            model = torch.compile(model, fullgraph=True, backend=task["mode"])
        shards = [shard(x, 2, None, layout) for x in (q, k, v)]
        with context_parallel(sequence_layout=layout):
            y = model(*shards)
        outside = model(q, k, v)
        exact, _ = _exact(q, k, v, task["is_causal"])
        y = unshard(y, 2, None, layout)
        return {"relative": _relative(y, exact), "outside": _relative(outside, exact)}

    def sub_group(self, task: dict) -> dict:
        """Rings over the even and over the odd ranks, at the same time."""
        groups = [dist.new_group(list(range(start, dist.get_world_size(), 2))) for start in (0, 1)]
        mine = groups[self.rank % 2]
        torch.manual_seed(self.rank % 2)
        q, k, v = torch.randn(3, 1, 2, 32, 16)
        y = ring_attention(*(shard(x, 2, mine, "striped") for x in (q, k, v)), mine,
                           is_causal=True, sequence_layout="striped")  # fmt: skip
        exact, _ = _exact(q, k, v, True)
        return {"relative": _relative(unshard(y, 2, mine, "striped"), exact)}

    def differing(self, task: dict) -> dict:
        """The error of every rank, if the call of one rank differs."""
        q, k, v = torch.randn(3, 1, 4, 16, 32, device=self.device)
        options = {"is_causal": True, "sequence_layout": "zigzag"}
        if self.rank == task["odd_rank"]:
            match task["what"]:
                case "rows":
                    q, k, v = (x[:, :, 1:].contiguous() for x in (q, k, v))
                case "kv_heads":
                    k, v = k[:, :2], v[:, :2]
                case "dtype":
                    q, k, v = q.double(), k.double(), v.double()
                case "layout":
                    options["sequence_layout"] = "striped"
                case "order":
                    k = k.transpose(1, 2).contiguous().transpose(1, 2)
        answer = {"error": "", "message": ""}
        try:
            if task["by"] == "context_parallel":
                with context_parallel(sequence_layout=options["sequence_layout"]):
                    functional.scaled_dot_product_attention(
                        q, k, v, is_causal=options["is_causal"], enable_gqa=True
                    )
            else:
                ring_attention(q, k, v, **options)
        except BaracudaError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        return answer

    def join_nccl(self, task: dict) -> dict:
        wrong = {"max_ctas": 99} if self.rank == task["odd_rank"] else {}
        try:
            Communicator.from_torch(device="host", timeout=30, **wrong)
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}

    def interrupted(self, task: dict) -> dict:
        """Rank 0 gets a Ctrl-C while it waits for the others, which come later."""
        group = dist.new_group()
        q, k, v = torch.randn(3, 1, 4, 16, 32)
        answer = {}
        start = time.monotonic()
        if self.rank == 0:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                if task["where"] == "exchange":
                    transport = _process_group.GroupTransport(group)
                    transport.group_start()
                    transport.recv(DeviceSlice(q.numpy().reshape(-1)), 1, None)
                    transport.group_end()
                else:
                    ring_attention(q, k, v, group)
            except KeyboardInterrupt as error:
                answer["raised"] = type(error).__name__
            answer["seconds"] = time.monotonic() - start - 0.3
        else:
            time.sleep(1.5)
        start = time.monotonic()
        try:
            ring_attention(q, k, v, group)
            answer["later"] = ""
        except BaracudaError as error:
            answer["later"] = type(error).__name__
        return {**answer, "later_seconds": time.monotonic() - start}

    def differing_shards(self, task: dict) -> dict:
        """The error of every rank, if the rows of one rank are others in one respect."""
        odd = self.rank == task["odd_rank"]
        rows, dim, layout, dtype = 4, 1, "contiguous", torch.float32
        match task["what"] if odd else None:
            case "rows":
                rows = 3
            case "dim":
                dim = 0
            case "float16" | "float64" | "bfloat16" as name:
                dtype = getattr(torch, name)
            case "layout":
                layout = "zigzag"
        if not odd and task["what"] == "bfloat16":
            dtype = torch.float16  # of the same size
        try:
            if task["by"] == "unshard":
                x = torch.full((4, rows), 1.0 + self.rank, dtype=dtype)
                found = unshard(x, dim, None, layout)
            else:
                whole = torch.zeros(4, rows * 8, dtype=dtype, requires_grad=True)
                shard(whole, dim, None, layout).sum().backward()
                found = whole.grad
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": str(found)}

    def deal(self, task: dict) -> dict:
        """Whether `unshard` undoes `shard`, and `position_ids` names the rows."""
        x = torch.arange(24 * 6).reshape(2, 3, 24)
        mine = shard(x, -1, None, task["layout"])
        back = unshard(mine, -1, None, task["layout"])
        rows = position_ids(mine.shape[-1], None, task["layout"])
        named, same = torch.equal(x[..., rows], mine), torch.equal(back, x)
        for name in task.get("dtypes", ()):
            x = (torch.arange(24) % 2).to(getattr(torch, name))
            back = unshard(shard(x, 0, None, task["layout"]), 0, None, task["layout"])
            same &= back.dtype is x.dtype
            same &= torch.equal(back.view(torch.uint8), x.view(torch.uint8))
            empty = unshard(x[:, None][:, :0], 0)  # no bytes to gather
            assert empty.shape == (24 * dist.get_world_size(), 0)
        return {"same": same, "named": named, "rows": rows.tolist()}

    def communicator(self, task: dict) -> dict:
        """Whether the ring has made its own communicator."""
        from baracuda_kernels.interop.torch._ring import ring_of

        return {"owned": ring_of("", self.device).comm.owned}

    def steady(self, task: dict) -> dict:
        """Bytes that the allocator holds after the first and after later calls."""
        q, k, v = (shard(x, 2, None, task["layout"]) for x in self._whole(task))
        reserved = []
        for _ in range(task["calls"]):
            ring_attention(q, k, v, is_causal=True, sequence_layout=task["layout"])
            torch.cuda.synchronize()
            reserved.append(torch.cuda.memory_reserved())
        return {"reserved": reserved}

    def graph(self, task: dict) -> dict:
        """Replays of a captured call against eager calls, on inputs the capture never saw."""
        layout = task["layout"]
        q, k, v = (shard(x, 2, None, layout) for x in self._whole(task))

        def call():
            return ring_attention(q, k, v, is_causal=True, sequence_layout=layout, return_lse=True)

        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, lse = call()
        same = []
        for seed in (1, 2):
            torch.manual_seed(seed + self.rank)
            for x in (q, k, v):
                x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            eager_y, eager_lse = call()
            same.append(torch.equal(y, eager_y) and torch.equal(lse, eager_lse))
        return {"same": same}

    def _whole(self, task: dict) -> list[torch.Tensor]:
        torch.manual_seed(task.get("seed", 0))
        rows, width = task["rows"] * dist.get_world_size(), task.get("head_dim", 32)
        heads = (task["heads"], task["kv_heads"], task["kv_heads"])
        dtype = getattr(torch, task["dtype"])
        return [torch.randn(2, h, rows, width).to(self.device, dtype) for h in heads]


def _attend(q, k, v, is_causal, layout, tensor_layout):
    # The factor gives a compiler something to compile around the ring.
    y, lse = ring_attention(
        q * 2.0,
        k,
        v,
        is_causal=is_causal,
        scale=0.5 / q.shape[-1] ** 0.5,
        sequence_layout=layout,
        tensor_layout=tensor_layout,
        return_lse=True,
    )
    return y * 1.0, lse


def _arrange(x: torch.Tensor, tensor_layout: str) -> torch.Tensor:
    return x if tensor_layout == "bhsd" else x.transpose(1, 2).contiguous()


def _exact(q, k, v, is_causal):
    """SDPA of the whole in the tensors' own precision, float32 at least, and lse in float64."""
    precise = [x.float() if x.element_size() < 4 else x for x in (q, k, v)]
    y = functional.scaled_dot_product_attention(*precise, is_causal=is_causal, enable_gqa=True)
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if is_causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return y, torch.logsumexp(scores, -1)


def _relative(y: torch.Tensor, exact: torch.Tensor) -> float:
    return ((y.double() - exact.double()).norm() / exact.double().norm()).item()


if __name__ == "__main__":
    me = Rank(int(sys.argv[1]))
    serve(me)
    me.leave()
