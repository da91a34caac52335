"""A whole local ring as one CUDA graph: captured once, replayed on new inputs.

    python examples/cuda_graph.py

`plan.run` with an NCCL communicator can be captured, too: its exchanges become nodes of the graph.
Select the plan, make the arguments and run once before the capture: in the first run NCCL and the
kernels load what they need. A graph has only addresses, so operands, scratch, plan and communicator
must outlive it. NCCL ends a communicator only when no graph holds its work.
"""

import torch

import baracuda_kernels as bk

RANKS, ROWS, HEADS, HEAD_DIM = 4, 1024, 8, 128


def main() -> None:
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.RingAttentionDescriptor(
        1, HEADS, ROWS, ROWS, HEAD_DIM, is_causal=True, element=bk.ElementKind.BF16,
        sequence_layout=bk.SequenceLayout.ZIGZAG,
    )  # fmt: skip
    plan = bk.RingAttentionPlan.select(desc, stream)
    ring = bk.LocalCommunicator.ring(RANKS, device=torch.cuda.current_device())
    shape = (RANKS, 1, HEADS, ROWS, HEAD_DIM)
    q, k, v, y = (torch.randn(shape, device="cuda").bfloat16() for _ in range(4))
    scratch = torch.empty(RANKS, 2, plan.kv_scratch_elements, dtype=q.dtype, device="cuda")
    state = torch.empty(RANKS, plan.accumulator_scratch_bytes, dtype=torch.uint8, device="cuda")
    args = [
        bk.RingAttentionArgs(
            q=q[r], k=k[r], v=v[r], y=y[r], kv_scratch_a=scratch[r, 0], kv_scratch_b=scratch[r, 1],
            accumulator_scratch=state[r],
        )
        for r in range(RANKS)
    ]  # fmt: skip

    def run() -> None:
        ring.run_all(torch.cuda.current_stream(), plan, args)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    for x in (q, k, v):  # new inputs at the old addresses
        x.normal_()
    graph.replay()
    replayed = y.clone()
    run()
    torch.cuda.synchronize()
    print(f"replayed and eager give the same bits: {torch.equal(replayed, y)}")


if __name__ == "__main__":
    main()
