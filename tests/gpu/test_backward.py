"""Gradients on the GPU against float64: dtypes, head dims, lengths, masks, heads, layouts, operands."""

import math

import numpy as np
import pytest
from helpers import backward_abi as abi
from helpers.cuda_gradients import Call, check, drawn, gradients, on_gpu
from helpers.gradients import Problem, accumulator, draw, forward
from helpers.rings import case, preference

import baracuda_kernels as bk
from baracuda_kernels import reference
from baracuda_kernels.testing import TORCH_DTYPES, attention_backward, error_of

pytestmark = pytest.mark.gpu

DTYPES = ("f16", "bf16", "f32", "f64")
ORDERED = ("sm90a-deterministic", "sm80-deterministic")
ON_TENSOR_CORES = [(family, dtype) for family in ("sm80", "sm90a") for dtype in ("f16", "bf16")]
FAMILIES = [*(("simt", dtype) for dtype in DTYPES), *ON_TENSOR_CORES,
            *((family, dtype) for family in ORDERED for dtype in ("f16", "bf16"))]  # fmt: skip
HEAD_DIMS = {"simt": (1, 40, 64, 128, 200, 256), "sm80": (64, 96, 128, 192, 256),
             "sm90a": (64, 128, 256)}
HEAD_DIMS |= {family: HEAD_DIMS[family.removesuffix("-deterministic")] for family in ORDERED}
CASES = [(family, dtype, d) for family, dtype in FAMILIES for d in HEAD_DIMS[family]]
# One head_dim of simt, and the head_dims of sm90a whose kernels have different shapes.
SHAPES = [(family, dtype, d) for family, dtype in FAMILIES
          for d in ((16,) if family == "simt" else (64, 256))
          if family == "simt" or d in HEAD_DIMS[family]]  # fmt: skip
# (query_len, key_len): around every tile edge, one-row, one-key, long against short.
LENGTHS = [(1, 1), (1, 257), (31, 33), (63, 65), (64, 64), (65, 127), (127, 63), (300, 1),
           (129, 128), (192, 255), (255, 257), (513, 385)]  # fmt: skip
HEADS = [(2, 2), (4, 2), (6, 1)]


@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_lengths_masks_and_heads(torch, family, dtype, head_dim):
    for number, (query_len, key_len) in enumerate(LENGTHS):
        heads, kv_heads = HEADS[number % len(HEADS)]
        shape = {"batch": 1 + number % 2, "heads": heads, "kv_heads": kv_heads,
                 "query_len": query_len, "key_len": key_len, "head_dim": head_dim}  # fmt: skip
        x = drawn(torch, dtype, number, **shape, dlse=number % 2 == 0)
        for is_causal in (False, True):
            with case(is_causal=is_causal, **shape):
                # With one column, the summands of a row's gradient nearly cancel.
                check(torch, family, dtype, x, is_causal=is_causal, wide=number % 3 == 0,
                      peaked=min(query_len, key_len) < 64 or head_dim == 1)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_long_sequences(torch, family, dtype, is_causal):
    for head_dim, kv_heads in ((64, 2), (96, 4), (128, 4), (128, 1), (192, 2), (256, 4), (256, 1)):
        # simt has no kernels for a single head_dim, so two are enough.
        if head_dim not in (HEAD_DIMS[family] if family != "simt" else (64, 128)):
            continue
        x = drawn(torch, dtype, 1, heads=4, kv_heads=kv_heads, query_len=2048, head_dim=head_dim)
        with case(head_dim=head_dim, kv_heads=kv_heads):
            check(torch, family, dtype, x, is_causal=is_causal)


@pytest.mark.parametrize(("family", "head_dim", "kv_heads"), [
    (family, d, kv_heads) for family in ("sm80", "sm90a", *ORDERED)
    for d, kv_heads in ((64, 24), (128, 24), (128, 6), (256, 24), (256, 6))
    if d in HEAD_DIMS[family]])  # fmt: skip
def test_more_key_tiles_than_blocks(torch, family, head_dim, kv_heads):
    """Blocks of sm90a take several key tiles: by sections and rounds, or from a counter."""
    for causal, batch in ((True, 5), (False, 2)):
        x = drawn(torch, "bf16", 12, batch=batch, heads=24, kv_heads=kv_heads, query_len=700,
                  key_len=650, head_dim=head_dim)  # fmt: skip
        with case(causal=causal):
            check(torch, family, "bf16", x, is_causal=causal)


# (batch, heads, kv_heads, query_len, key_len): so many heads that sm90a takes key tiles of 256 keys,
# with ends in either half of a warpgroup's, query tiles that a warpgroup does not see, and groups.
DOUBLE_TILES = [(3, 20, 20, 200, 300), (1, 60, 60, 1, 257), (2, 60, 30, 129, 511),
                (1, 60, 60, 700, 512), (30, 8, 2, 65, 385), (1, 60, 30, 2100, 700)]  # fmt: skip


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("family", ["sm90a", "sm90a-deterministic"])
def test_key_tiles_of_256(torch, family, dtype):
    for number, (batch, heads, kv_heads, query_len, key_len) in enumerate(DOUBLE_TILES):
        shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "query_len": query_len,
                 "key_len": key_len, "head_dim": 64}  # fmt: skip
        x = drawn(torch, dtype, number, **shape, dlse=number % 2 == 0)
        for is_causal in (False, True):
            with case(is_causal=is_causal, **shape):
                check(torch, family, dtype, x, is_causal=is_causal, wide=number % 2 == 1,
                      peaked=query_len < 64)  # fmt: skip


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-3, 2.0])
@pytest.mark.parametrize(("family", "dtype"), [("simt", "f32"), ("simt", "f64")])
def test_any_scale(torch, family, dtype, scale):
    x = drawn(torch, dtype, 2, query_len=150)
    check(torch, family, dtype, x, scale=scale, is_causal=True)


@pytest.mark.parametrize("scale", [1e-6, 0.02, 1.0])
@pytest.mark.parametrize(("family", "dtype"), ON_TENSOR_CORES)
@pytest.mark.parametrize("head_dim", [64, 256])
def test_positive_scales(torch, head_dim, family, dtype, scale):
    x = drawn(torch, dtype, 2, query_len=150, head_dim=head_dim)
    check(torch, family, dtype, x, scale=scale, is_causal=True, peaked=True)


@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_peaked_rows(torch, family, dtype):
    x = drawn(torch, dtype, 3, query_len=333, key_len=517, head_dim=64, logits=8.0)
    check(torch, family, dtype, x, peaked=True)


@pytest.mark.parametrize(("family", "head_dim", "kv_heads"), [
    *(("sm90a", *heads) for heads in ((64, 2), (128, 2), (128, 1), (256, 2))),
    *(("sm80", *heads) for heads in ((64, 2), (96, 1), (128, 2), (192, 2), (256, 1)))])  # fmt: skip
@pytest.mark.parametrize("size", [1e-3, 3.0, 300.0])
def test_float16_gradients_neither_underflow_nor_overflow(torch, size, family, head_dim, kv_heads):
    """P is about 1/K, dS as much smaller than dy: below float16's range unless it is shifted. With
    large dy, few keys and large V, dS is near its other end."""
    long = size < 1
    x = drawn(torch, "f16", 13, heads=2, kv_heads=kv_heads, query_len=256,
              key_len=16384 if long else 3, head_dim=head_dim)  # fmt: skip
    x = x._replace(dy=x.dy * size, v=x.v if long else x.v * 8)
    exact = attention_backward(*x[:4])
    got = Call(torch, family, "f16", x, wide=True).run()
    for name, one, truth in zip(("dk", "dv"), got[1:], exact[1:], strict=True):
        relative = float((one.double() - truth).norm() / truth.norm())
        with case(name=name):
            # y, from which delta is computed, is float16 too.
            assert relative < (1e-3 if long else 4e-3)
    assert torch.isfinite(got[0]).all()


def number_of(family):
    """As the C ABI defines it."""
    number = {"simt": 1, "sm80": 2, "sm90a": 3}[family.removesuffix("-deterministic")]
    return abi.library().baracuda_attention_backward_second(number) if family in ORDERED else number


@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
@pytest.mark.parametrize("layout", [0, 1, 2])
def test_steps_at_the_positions_of_a_ring(torch, family, dtype, layout):
    """Several steps with one sum of dq, and dk and dv of each step, give the whole gradients."""
    preference(family, dtype)  # skips without such a family
    lengths = [(2, 150, True), (3, 70, False), (4, 66, True)]
    for world_size, length, causal in lengths:
        head_dim = 72 if family == "simt" else {2: 64, 3: 128, 4: HEAD_DIMS[family][-1]}[world_size]
        x = draw(dtype, world_size, heads=2, kv_heads=1, query_len=world_size * length,
                 head_dim=head_dim, dlse=True)  # fmt: skip
        y, lse = forward(x, is_causal=causal)
        kinds = {"operand": getattr(torch, TORCH_DTYPES[dtype]), "f64": torch.float64,
                 "wide": getattr(torch, accumulator(dtype).name)}
        def empty(shape, like, kinds=kinds):
            return torch.full(tuple(shape), math.nan, dtype=kinds[like], device="cuda")
        held = []
        def place(a, held=held):
            held.append(on_gpu(torch, [a, *[None] * 4]).q)
            return held[-1]
        got = abi.ring_gradients(
            x, y, lse, world_size, layout, kernel=number_of(family),
            causal=causal, empty=empty, place=place,
            stream=torch.cuda.current_stream().cuda_stream)
        exact = reference.attention_backward(*x[:4], dlse=x.dlse, is_causal=causal)
        bound = {"f32": 1e-6, "f64": 1e-13, "bf16": 3e-3, "f16": 4e-4}[dtype]
        bound *= 1.0 if family == "simt" else 1.5
        for name, one, truth in zip(("dq", "dk", "dv"), got, exact, strict=True):
            with case(name=name, world_size=world_size, causal=causal):
                assert error_of(one, truth)["relative"] < bound


@pytest.mark.parametrize(("family", "dtype", "head_dim"), SHAPES)
def test_keys_that_no_row_sees_and_rows_that_see_none(torch, family, dtype, head_dim):
    x = draw(dtype, 4, query_len=40, key_len=300, head_dim=head_dim)
    x.k[:, :, 41:] = np.nan  # whatever is there
    x.v[:, :, 41:] = np.nan
    call = Call(torch, family, dtype, on_gpu(torch, x), is_causal=True)
    y, lse = forward(x, is_causal=True)
    call.y.copy_(on_gpu(torch, [y, *[None] * 4]).q)
    call.lse.copy_(on_gpu(torch, [lse, *[None] * 4]).q)
    _, dk, dv = call.run()
    assert (dv[:, :, :40] != 0).any() and torch.isfinite(dv[:, :, :40]).all()
    # A tile's products read all of its keys, and must not change the gradients of other rows.
    assert (dk[:, :, 40:] == 0).all() and (dv[:, :, 40:] == 0).all()
    shape = {"head_dim": head_dim}
    dq, _, _ = gradients(torch, family, dtype,
                         drawn(torch, dtype, 5, query_len=70, key_len=0, **shape))
    assert (dq == 0).all()
    _, dk, dv = gradients(torch, family, dtype,
                          drawn(torch, dtype, 6, query_len=0, key_len=150, **shape))
    assert (dk == 0).all() and (dv == 0).all()


@pytest.mark.parametrize("name", ["q", "k", "v", "dy", "dlse"])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), SHAPES)
def test_nan_and_inf_reach_what_sees_them_and_nothing_else(torch, family, dtype, head_dim, name):
    for value, at in ((np.nan, 0), (np.inf, 70), (np.nan, 131), (np.nan, 149)):
        x = draw(dtype, 7, query_len=150, dlse=True, head_dim=head_dim)
        spoilt = getattr(x, name).copy()
        spoilt[(0, 0, at, 3)[: spoilt.ndim]] = value
        x = x._replace(**{name: spoilt})
        exact = reference.attention_backward(*x[:4], dlse=x.dlse, is_causal=True)
        got = gradients_after_exact_forward(torch, family, dtype, x)
        for gradient, one, truth in zip(("dq", "dk", "dv"), got, exact, strict=True):
            bad, wanted = ~np.isfinite(abi.to_numpy(one)), ~np.isfinite(truth)
            with case(gradient=gradient, value=value, at=at):
                if family == "simt":
                    assert not (bad != wanted).any(), np.argwhere(bad != wanted)[:5]
                    continue
                # Products of a tile multiply masked values by zero.
                assert not (wanted & ~bad).any(), np.argwhere(wanted & ~bad)[:5]
                beyond = bad & ~in_reach(gradient, name, at, bad.shape)
                assert not beyond.any(), np.argwhere(beyond)[:5]


def in_reach(gradient, name, at, shape):
    """Rows or keys that share a pair of tiles, 64 rows and 128 keys, with row or key `at`, and those
    that see or are seen by what it spoils on its way: all others of its head."""
    reach = np.zeros(shape, bool)
    if name in ("k", "v"):  # the rows that see the key, and then all keys of these rows
        first = at // 128 * 128 if gradient == "dq" else 0
        reach[0, 0, first:] = True
    elif gradient == "dq":  # only the row
        reach[0, 0, at] = True
    else:  # the keys up to the row's last tile
        reach[0, 0, : min(shape[2], (at // 128 + 1) * 128)] = True
    return reach


def gradients_after_exact_forward(torch, family, dtype, x):
    """After the host's forward, since a GPU's forward may spread an Inf in V within a tile."""
    call = Call(torch, family, dtype, on_gpu(torch, x), is_causal=True)
    y, lse = forward(x, is_causal=True)
    exact = on_gpu(torch, [y, lse, None, None, None])
    call.y.copy_(exact.q)
    call.lse.copy_(exact.k)
    return call.run()


def same(torch, family, one, other):
    """Equal bits; dq of the fast kernels, whose sum has no fixed order, within four roundings."""
    if family in ("sm80", "sm90a"):
        near = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}[one[0].dtype]
        torch.testing.assert_close(one[0], other[0], rtol=near, atol=near * float(
            one[0].abs().max()) / 16)  # fmt: skip
        one, other = one[1:], other[1:]
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("family", "dtype", "d"), [
    (family, dtype, d) for family, dtype in FAMILIES
    for d in ((48,) if family == "simt" else HEAD_DIMS[family][1:])])  # fmt: skip
def test_strides(torch, family, dtype, d):
    x = drawn(torch, dtype, 8, batch=2, heads=4, kv_heads=2, query_len=130, head_dim=d)
    plain = gradients(torch, family, dtype, x, is_causal=True)
    strided = Problem(*(None if a is None else a.transpose(1, 2).contiguous().transpose(1, 2)
                        for a in x))
    call = Call(torch, family, dtype, strided, is_causal=True)
    assert call.gradients[0].stride() == strided.q.stride()
    assert same(torch, family, plain, call.run())
    # dy in the form that autograd gives for a sum.
    ones = x._replace(dy=torch.ones_like(x.q), dlse=torch.full_like(call.lse, 0.5))
    expanded = x._replace(dy=torch.ones((1, 1, 1, d), dtype=x.q.dtype, device="cuda").expand_as(x.q),
                          dlse=torch.full((), 0.5, dtype=call.lse.dtype,
                                          device="cuda").expand_as(call.lse))
    assert expanded.dy.stride()[:3] == (0, 0, 0)
    assert same(torch, family, gradients(torch, family, dtype, ones),
                gradients(torch, family, dtype, expanded))


def test_what_sm90a_cannot_read_is_refused(torch):
    x = drawn(torch, "bf16", 8, query_len=64, head_dim=64)
    padded = torch.zeros((*x.dy.shape[:3], 68), dtype=x.dy.dtype, device="cuda")[..., :64]
    with pytest.raises(bk.MisalignedOperandError, match="dy: got stride 68"):
        gradients(torch, "sm90a", "bf16", x._replace(dy=padded))
    turned = x.dy.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(bk.InvalidProblemError, match="dy: got stride 64 in the last dimension"):
        gradients(torch, "sm90a", "bf16", x._replace(dy=turned))


@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_a_call_replays_from_a_graph(torch, family, dtype):
    shapes = ((64, 2),) if family == "simt" else ((64, 2), (128, 4), (128, 2), (256, 4), (256, 2))
    for head_dim, kv_heads in (s for s in shapes if s[0] in HEAD_DIMS[family]):
        x = drawn(torch, dtype, 9, heads=4, kv_heads=kv_heads, query_len=200, head_dim=head_dim,
                  dlse=True)  # fmt: skip
        call = Call(torch, family, dtype, x, is_causal=True)
        # The first run is captured: select has loaded all kernels.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call.run()
        for _ in range(2):
            eager = [g.clone() for g in call.run()]
            call.poison()
            graph.replay()
            torch.cuda.synchronize()
            assert same(torch, family, eager, call.gradients)
            x.dy.mul_(2)  # new inputs in place


@pytest.mark.device_memory
@pytest.mark.parametrize(("family", "dtype", "head_dim"), SHAPES)
def test_100_runs_give_the_same_bits_and_allocate_nothing(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 10, heads=4, kv_heads=2, query_len=700, head_dim=head_dim)
    call = Call(torch, family, dtype, x, is_causal=True)
    assert call.plan.precision_guarantee.deterministic == (family not in ("sm80", "sm90a"))
    first = [g.clone() for g in call.run()]
    torch.cuda.synchronize()
    other, square = torch.cuda.Stream(), torch.empty_like(x.q)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    for run in range(100):
        call.poison()
        if run % 2:  # with concurrent work
            with torch.cuda.stream(other):
                torch.square(x.q, out=square)
        call.run()
        assert same(torch, family, first, call.gradients), run
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


# (head_dim, heads, kv_heads, query_len, key_len, is_causal) with waits of every kind: many key tiles of
# one head, several sections of heads, groups, few heads (several sums of dq), and lengths that end
# within a tile.
ORDERED_PROBLEMS = {
    "sm90a-deterministic": [
        (64, 3, 3, 1500, 1500, True), (64, 60, 60, 300, 300, False), (128, 20, 20, 640, 650, True),
        (128, 2, 2, 500, 2100, False), (128, 8, 2, 1000, 900, True), (256, 12, 12, 640, 650, True),
        (256, 2, 1, 500, 2100, False), (128, 2, 2, 2100, 2050, False), (256, 1, 1, 2100, 2100, False)],
    "sm80-deterministic": [
        (64, 3, 3, 1500, 1500, True), (96, 2, 2, 500, 2100, False), (128, 8, 2, 1000, 900, True),
        (192, 8, 8, 640, 650, True), (256, 4, 2, 500, 900, False),
        (128, 2, 2, 2100, 2050, False), (64, 1, 1, 2100, 2100, True)],
}  # fmt: skip
ORDERED_CASES = [(family, problem) for family in ORDERED for problem in ORDERED_PROBLEMS[family]]


@pytest.mark.parametrize(("family", "problem"), ORDERED_CASES, ids=str)
@pytest.mark.parametrize("beside", ["nothing", "a kernel that holds half of the SMs"])
def test_1000_runs_in_a_fixed_order_give_the_same_bits(torch, family, problem, beside):
    head_dim, heads, kv_heads, query_len, key_len, is_causal = problem
    x = drawn(torch, "bf16", 14, heads=heads, kv_heads=kv_heads, query_len=query_len,
              key_len=key_len, head_dim=head_dim)  # fmt: skip
    call = Call(torch, family, "bf16", x, is_causal=is_causal)
    first = [g.clone() for g in call.run()]
    hold = None if beside == "nothing" else half_of_the_gpu(torch)
    together = 0
    for burst in range(40):
        held = hold() if hold else None
        for run in range(25):
            call.poison()
            call.run()
            assert same(torch, family, first, call.gradients), (burst, run)
            together += held is not None and not held.query()
        if held:
            held.synchronize()
    # All cases on a GPU without other work.
    assert hold is None or together >= 100, "it was to hold SMs beside the runs"


# Sums of dq that L2 cannot hold. In short calls the first addition is a store.
@pytest.mark.parametrize(("batch", "query_len", "key_len", "is_causal"), [
    (32, 300, 260, True), (33, 257, 700, False), (8, 1100, 1100, True)])  # fmt: skip
@pytest.mark.parametrize("beside", ["nothing", "a kernel that holds half of the SMs"])
def test_the_first_addition_stores_whichever_blocks_are_at_work(
        torch, batch, query_len, key_len, is_causal, beside):  # fmt: skip
    """In any order, no addition is lost, and no block waits for one that cannot start."""
    x = drawn(torch, "bf16", 16, batch=batch, heads=16, kv_heads=16, query_len=query_len,
              key_len=key_len, head_dim=128)  # fmt: skip
    call = Call(torch, "sm90a", "bf16", x, is_causal=is_causal)
    tiles = batch * 16 * -(-query_len // 64)
    assert call.plan.scratch_bytes > tiles * 64 * 4 * (4 + 128), "there are no words"
    exact = attention_backward(*x[:4], is_causal=is_causal)
    found, truth = (x.double().cpu().numpy() for x in (call.run()[0], exact[0]))
    assert error_of(found, truth)["relative"] < 4e-3
    first = [g.clone() for g in call.gradients]
    hold = None if beside == "nothing" else half_of_the_gpu(torch)
    for burst in range(4):
        held = hold() if hold else None
        for run in range(25):
            call.poison()
            call.run()
            assert same(torch, "sm90a", first, call.gradients), (burst, run)
        if held:
            held.synchronize()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for margin in (processors // 2, processors - 3, processors - 1):
        call.poison()
        run_with_margin(torch, call, "sm90a", x, margin, 16, is_causal)
        for gradient, truth in zip(call.gradients, exact, strict=False):
            found = gradient.double().cpu().numpy()
            assert error_of(found, truth.double().cpu().numpy())["relative"] < 4e-3, margin


def half_of_the_gpu(torch):
    """What starts a kernel whose blocks stay on half of the SMs for some 100 ms, each with most of its
    SM's shared memory, and gives the event of its end."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    length, stream = 49152, torch.cuda.Stream()
    rows = torch.zeros((1, 8, length, 128), dtype=torch.bfloat16, device="cuda")
    lse = torch.zeros((1, 8, length), dtype=torch.float32, device="cuda")
    dq, dk, dv = (torch.empty_like(rows) for _ in range(3))
    kinds = {"stream": stream.cuda_stream, "sm_margin": processors - processors // 2}
    steps = abi.Steps(Problem(rows, rows, rows, rows, None), rows, lse, kernel=3, kv_heads=8, dq=dq,
                      scale=1.0, causal=False, q_map=abi.PositionMap(0, 0, 1, length), **kinds)
    scratch = torch.empty(steps.scratch_bytes(), dtype=torch.uint8, device="cuda")
    steps.params.step.state = scratch.data_ptr()
    steps.bind_keys(rows, rows, dk, dv, abi.PositionMap(0, 0, 1, length))
    torch.cuda.synchronize()

    def hold(scratch=scratch):
        steps.prepare()
        began = torch.cuda.Event()
        began.record(stream)
        steps.step(first=True, last=False)
        end = torch.cuda.Event()
        end.record(stream)
        began.synchronize()
        return end

    return hold


@pytest.mark.parametrize(("family", "problem"), ORDERED_CASES, ids=str)
def test_a_fixed_order_depends_neither_on_the_grid_nor_on_the_launch(torch, family, problem):
    """With any margin, down to one block for all key tiles, and in repeated replays of a graph."""
    head_dim, heads, kv_heads, query_len, key_len, is_causal = problem
    x = drawn(torch, "f16", 15, heads=heads, kv_heads=kv_heads, query_len=query_len,
              key_len=key_len, head_dim=head_dim)  # fmt: skip
    call = Call(torch, family, "f16", x, is_causal=is_causal)
    first = [g.clone() for g in call.run()]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for margin in (processors // 2, processors - 3, processors - 1):
        call.poison()
        run_with_margin(torch, call, family, x, margin, kv_heads, is_causal)
        assert same(torch, family, first, call.gradients), margin
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    for _ in range(100):
        call.poison()
        graph.replay()
        graph.replay()
        assert same(torch, family, first, call.gradients)


def run_with_margin(torch, call, family, x, margin, kv_heads, is_causal):
    """The call by its steps, on so many SMs fewer."""
    dq, dk, dv = call.gradients
    steps = abi.Steps(x, call.y, call.lse, kernel=number_of(family), kv_heads=kv_heads, dq=dq,
                      scale=x.q.shape[3]**-0.5, causal=is_causal, sm_margin=margin,
                      stream=torch.cuda.current_stream().cuda_stream,
                      q_map=abi.PositionMap(0, 0, 1, x.q.shape[2]), scratch=call.scratch)
    steps.bind_keys(x.k, x.v, dk, dv, abi.PositionMap(0, 0, 1, x.k.shape[2]))
    steps.params.step.flags |= abi.FIRST | abi.LAST
    steps.prepare()
    steps.step(first=True, last=True)


def test_what_is_selected_for_a_bf16_problem_and_why_others_are_not(torch):
    stream = bk.Stream(torch.cuda.current_stream())
    hopper = torch.cuda.get_device_capability() == (9, 0)
    desc = bk.FlashSdpaDescriptor(1, 2, 64, 64, 128, element="BF16")
    for pref, family in ((None, "sm90a" if hopper else "sm80"),
                         (bk.PlanPreference(deterministic=True), ORDERED[0] if hopper else ORDERED[1]),
                         (bk.PlanPreference(allow_sm90a=False), "sm80"),
                         (bk.PlanPreference(math_precision="BF16", deterministic=True,
                                            allow_sm90a=False), ORDERED[1]),
                         (bk.PlanPreference(math_precision="F32"), "simt")):
        plan = bk.FlashSdpaBackwardPlan.select(desc, stream, pref)
        assert plan.family == family and plan.sku.direction is bk.Direction.BACKWARD
        assert plan.precision_guarantee.deterministic == (family in ("simt", *ORDERED))
    with pytest.raises(bk.UnsupportedError, match="sm80: head_dim: got 72, must be one of 64"):
        bk.FlashSdpaBackwardPlan.select(
            bk.FlashSdpaDescriptor(1, 2, 64, 64, 72, element="BF16"), stream,
            bk.PlanPreference(math_precision="BF16", deterministic=True))


def test_scratch_and_devices(torch):
    x = drawn(torch, "bf16", 11, query_len=100)
    call = Call(torch, "simt", "bf16", x)
    assert call.plan.scratch_bytes == 2 * 2 * 100 * 4
    names = ("q", "k", "v", "dy")
    given = dict(zip(names, x[:4], strict=True), y=call.y, lse=call.lse,
                 **dict(zip(("dq", "dk", "dv"), call.gradients, strict=True)))
    with pytest.raises(bk.InvalidProblemError, match="scratch: got None"):
        call.plan.can_implement(bk.FlashSdpaBackwardArgs(**given))
    with pytest.raises(bk.WorkspaceTooSmallError, match="scratch"):
        call.plan.can_implement(bk.FlashSdpaBackwardArgs(**given, scratch=call.scratch[:-16]))
    given["dq"] = x.q.cpu()
    with pytest.raises(bk.InvalidProblemError, match="dq: got memory on the host"):
        call.plan.can_implement(bk.FlashSdpaBackwardArgs(**given, scratch=call.scratch))
