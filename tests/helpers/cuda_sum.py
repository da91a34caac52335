"""One rank of the test op of sum_ring.py on a GPU: the same shares, by torch's kernels."""

from __future__ import annotations

import ctypes as ct
from typing import Any

from . import ring_abi as abi
from .sum_ring import SumRing


class CudaSumRank:
    """A rank's memory on the GPU and its call. `ring` has the numbers of all ranks and the answer.

    Every multiplication and every addition is a kernel of its own, so the bits are the host's. A
    run allocates nothing and loads no kernel: both could wait for work that waits for another rank.
    """

    def __init__(self, torch: Any, ring: SumRing, rank: int) -> None:
        self.torch, self.ring, self.rank = torch, ring, rank

        def on_gpu(x: Any) -> Any:
            return torch.from_numpy(x).cuda()

        self.a, self.b = on_gpu(ring.a[rank]), on_gpu(ring.b[rank])
        self.y, self.home = on_gpu(ring.y[rank]), on_gpu(ring.home[rank])
        self.beside, self.behind = on_gpu(ring.beside[rank]), on_gpu(ring.behind[rank])
        self.share, self.more, self.total = (torch.empty_like(self.a) for _ in range(3))
        torch.mul(self.a, 2.0, out=self.share).add_(self.a)
        torch.add(self.a, self.share, out=self.total)
        self.more.copy_(self.total)
        self.poison()
        torch.cuda.synchronize()
        pieces = [self.a, self.b, *self.home.flatten(0, 1)]
        pieces += [*self.beside.flatten(0, 1), *self.behind.flatten(0, 2)]
        self.tensors = {x.data_ptr(): x for x in pieces}
        adds = self._launch_and_add if ring.launch_adds else self._launch
        self.program = abi.Program(
            struct_size=ct.sizeof(abi.Program),
            parts=ring.parts,
            launch_adds=int(ring.launch_adds),
            is_live=abi.ProgramFn(lambda _, at: int(self._is_live(at.contents))),
            launch=abi.ProgramFn(lambda _, at: adds(at.contents)),
            add=abi.ProgramFn(lambda _, at: self._add(at.contents)),
            settle=abi.ProgramFn(lambda _, at: self._settle(at.contents)),
        )

    def poison(self) -> None:
        for x in (self.beside, self.behind, self.home):
            x.fill_(float("nan"))
        self.y.zero_()

    def call(self, endpoint: Any, stream: int) -> abi.Call:
        payloads = [_payload(abi.BESIDE, 0, [self.a, self.b], self.beside)]
        for part in range(self.ring.parts):
            payloads.append(_payload(abi.BEHIND, part, self.home[part], self.behind[part]))
        self.payloads = (abi.Payload * len(payloads))(*payloads)
        self.hops = abi.plain_schedule(self.rank, self.ring.world_size)
        return abi.Call(
            struct_size=ct.sizeof(abi.Call),
            endpoint=ct.pointer(endpoint),
            stream=stream,
            hops=self.hops,
            program=ct.pointer(self.program),
            payloads=self.payloads,
            payload_count=len(payloads),
        )

    def is_right(self) -> bool:
        y, home = self.ring.expected()
        self.torch.cuda.synchronize()
        mine, sums = self.y.cpu().numpy(), self.home.cpu().numpy()
        return bool((mine == y[self.rank]).all() and (sums == home[self.rank]).all())

    def _is_live(self, at: abi.Step) -> bool:
        return bool(self.ring.live[at.rank, at.hops[at.step].origin])

    def _on(self, at: abi.Step) -> Any:
        return self.torch.cuda.stream(self.torch.cuda.ExternalStream(at.stream))

    def _settle(self, at: abi.Step) -> int:
        with self._on(at):
            self.y.mul_(2).add_(1)
        return abi.OK

    def _launch(self, at: abi.Step, adds: bool = False) -> int:
        multiply, add = self.torch.mul, self.torch.add
        with self._on(at):
            a, b = (self.tensors[at.chunk[0][i]] for i in range(2))
            multiply(a, 1 + 0.37 * at.rank + 0.11 * at.part, out=self.share)
            if at.part:
                multiply(b, at.part, out=self.more)
                self.share.add_(self.more)
            else:
                self.y.add_(a)
            multiply(self.share, -2, out=self.more)
            for i, value in enumerate((self.share, self.more)):
                received = at.received[1 + at.part][i]
                if adds and received:
                    add(self.tensors[received], value, out=self.tensors[received])
                else:
                    self.tensors[at.chunk[1 + at.part][i]].copy_(value)
        return abi.OK

    def _launch_and_add(self, at: abi.Step) -> int:
        return self._launch(at, adds=True)

    def _add(self, at: abi.Step) -> int:
        with self._on(at):
            for i in range(2):
                chunk = self.tensors[at.chunk[1 + at.part][i]]
                received = self.tensors[at.received[1 + at.part][i]]
                self.torch.add(received, chunk, out=self.total)
                (chunk if at.step == at.world_size else received).copy_(self.total)
        return abi.OK


def _payload(timing: int, part: int, own: Any, buffers: Any) -> abi.Payload:
    payload = abi.Payload(timing=timing, part=part, pieces=len(own))
    for i, piece in enumerate(own):
        payload.own[i], payload.piece_bytes[i] = piece.data_ptr(), piece.nbytes
    for i, buffer in enumerate(buffers):
        payload.buffers[i] = buffer.data_ptr()
    return payload
