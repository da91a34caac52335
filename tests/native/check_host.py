"""Checks the host family against float64: python tests/native/check_host.py LIBRARY"""

import ctypes as ct
import itertools
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`: this file is run by its path

import numpy as np
from helpers.host_abi import (
    CAUSAL,
    DTYPE,
    FIRST,
    LAST,
    Library,
    PositionMap,
    attend,
    attend_chunks,
    causal_mask,
    contiguous,
    make_params,
    oracle,
    relative_error,
    striped,
    zigzag,
)  # fmt: skip

lib = Library(sys.argv[1])
rng = np.random.default_rng(7)
TOLERANCE = {"f64": 1e-12, "f32": 2e-6, "f16": 6e-4, "bf16": 5e-3}


def normal(shape, element, heavy=False):
    a = rng.standard_t(2, shape) if heavy else rng.standard_normal(shape)
    return a.astype(DTYPE[element])


def expect(condition, what):
    if not condition:
        print("FAILED:", what)
        expect.failures += 1


expect.failures = 0


def check_grid():
    worst = {}
    for element, tolerance in TOLERANCE.items():
        for b, h, hkv, q_len, k_len, d in [
            (1, 1, 1, 1, 1, 1), (2, 3, 1, 5, 7, 3), (1, 4, 2, 64, 64, 64), (1, 2, 2, 130, 257, 128),
            (1, 2, 1, 33, 500, 80), (2, 2, 2, 1, 300, 96), (1, 8, 1, 2, 100, 40),
            (1, 1, 1, 200, 1, 33), (1, 1, 1, 70, 130, 1024), (1, 1, 1, 40, 60, 511),
            (1, 6, 3, 17, 0, 16), (1, 1, 1, 500, 500, 128), (1, 1, 1, 300, 700, 17),
            (1, 1, 1, 129, 97, 256), (1, 1, 1, 13, 13, 160),
        ]:  # fmt: skip
            for causal in (False, True):
                for heavy in (False, True):
                    q, k, v = (
                        normal((b, n, s, d), element, heavy)
                        for n, s in ((h, q_len), (hkv, k_len), (hkv, k_len))
                    )
                    mask = np.tril(np.ones((q_len, k_len), bool)) if causal else None
                    y, lse = attend(lib, q, k, v, element, causal)
                    ref, ref_lse = oracle(q, k, v, mask=mask)
                    error = relative_error(y, ref)
                    worst[element, heavy] = max(worst.get((element, heavy), 0), error)
                    where = f"{element} {(b, h, hkv, q_len, k_len, d)} {causal=} {heavy=}: {error:.2e}"
                    # A few values dominate heavy-tailed 16-bit outputs, so only the rounding is
                    # compared.
                    expect(error <= tolerance, "y " + where)
                    expect(np.allclose(lse, ref_lse, rtol=1e-5, atol=1e-5), "lse " + where)
    for key, error in worst.items():
        print("grid", key, f"{error:.2e}")


def check_layouts_and_rings():
    for element, tolerance in TOLERANCE.items():
        for world in range(1, 9):
            for layout in (contiguous, zigzag, striped):
                length, d, h, hkv = 45, 48, 4, 2
                total = length * world
                maps = [layout(r, length, world) for r in range(world)]
                order = [m.positions(length) for m in maps]
                q, k, v = (normal((1, n, total, d), element) for n in (h, hkv, hkv))
                for causal in (False, True):
                    mask = np.tril(np.ones((total, total), bool)) if causal else None
                    ref, ref_lse = oracle(q, k, v, mask=mask)
                    for r in range(world):
                        around = [(r - s) % world for s in range(world)]
                        chunks = [
                            tuple(np.ascontiguousarray(a[:, :, order[o]]) for a in (k, v))
                            for o in around
                        ]
                        local = np.ascontiguousarray(q[:, :, order[r]])
                        y, lse = attend_chunks(
                            lib, local, chunks, element, causal, [maps[o] for o in around],
                            q_map=maps[r],
                        )  # fmt: skip
                        where = f"{element} {layout.__name__} P={world} r={r} {causal=}"
                        error = relative_error(y, ref[:, :, order[r]])
                        expect(error <= tolerance, f"ring {where} {error:.2e}")
                        close = np.allclose(lse, ref_lse[:, :, order[r]], rtol=1e-5, atol=1e-5)
                        expect(close, "ring lse " + where)


def check_rounding():
    """16-bit: the rms error is close to that of rounding the exact result, at every P."""
    for element in ("f16", "bf16"):
        q, k, v = (normal((1, 2, 1024, 64), element) for _ in range(3))
        ref, _ = oracle(q, k, v)
        rounding = relative_error(ref.astype(DTYPE[element]), ref)
        ratios = []
        for world in range(1, 9):
            n = 1024 // world
            edges = [n * i for i in range(world)] + [1024]
            chunks = [
                tuple(np.ascontiguousarray(a[:, :, lo:hi]) for a in (k, v))
                for lo, hi in itertools.pairwise(edges)
            ]
            y, _ = attend_chunks(lib, q, chunks, element)
            ratios.append(relative_error(y, ref) / rounding)
        print("rounding", element, " ".join(f"{r:.4f}" for r in ratios))
        expect(max(ratios) < 1.2 and max(ratios) / min(ratios) < 1.02, f"rounding {element}")


def check_scales():
    for element, tolerance in TOLERANCE.items():
        q, k, v = (normal((1, 2, 100, 32), element) for _ in range(3))
        largest = -1e300 if element == "f64" else 2e38
        for scale in (0.0, -0.3, 1e-30, -1e-46, 5.0, 1e30, largest, 1.0):
            y, lse = attend(lib, q, k, v, element, scale=scale)
            ref, ref_lse = oracle(q, k, v, scale=scale)
            error = relative_error(y, ref)
            expect(error <= tolerance * 3, f"scale {scale} {element}: {error:.2e}")
            with np.errstate(over="ignore"):
                close = np.allclose(lse, ref_lse.astype(np.float32), rtol=1e-5, atol=1e-5)
            expect(close, f"scale lse {scale} {element}")


def check_strides():
    for element in TOLERANCE:
        b, h, hkv, s, d = 2, 4, 2, 150, 64
        q, k, v = (normal((b, n, s, d), element) for n in (h, hkv, hkv))
        y0, lse0 = attend(lib, q, k, v, element, causal=True)
        views = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for a in (q, k, v)]
        y1, lse1 = attend(lib, *views, element, causal=True)
        expect(np.array_equal(y0, y1) and np.array_equal(lse0, lse1), f"BSHD views {element}")
        out = np.full((b, s, h, d + 5), 77, q.dtype)
        view = out[..., :d].transpose(0, 2, 1, 3)
        lib.step(make_params(*views, view, element=element, flags=FIRST | LAST | CAUSAL))
        expect(np.array_equal(view, y0) and (out[..., d:] == 77).all(), f"strided y {element}")
        half = DTYPE[element]
        _, lse2 = attend(lib, q, k, v, element, causal=True, lse_element=element)
        expect(lse2.dtype == half and np.allclose(lse2.astype(float), lse0, rtol=1e-2), "lse dtype")


def check_non_finite():
    for element in TOLERANCE:
        for d in (48, 64, 33):
            q, k, v = (normal((1, 1, 300, d), element) for _ in range(3))
            clean, clean_lse = attend(lib, q, k, v, element, causal=True)
            for bad in (np.nan, np.inf, -np.inf):
                for at in (0, 5, 130, 299):
                    for target in "qkv":
                        operands = {"q": q.copy(), "k": k.copy(), "v": v.copy()}
                        operands[target][0, 0, at, 3] = bad
                        y, lse = attend(lib, *operands.values(), element, causal=True)
                        where = f"{element} {d=} {target}[{at}]={bad}"
                        rows = np.arange(300)
                        sees = rows == at if target == "q" else rows >= at
                        same = (y == clean).all(-1)[0, 0]
                        expect(same[~sees].all(), "untouched rows " + where)
                        expect(np.array_equal(lse[0, 0, ~sees], clean_lse[0, 0, ~sees]), "lse " + where)
                        ref, ref_lse = oracle(*operands.values(), mask=np.tril(np.ones((300, 300), bool)))
                        expect(not same[sees].all(), "reached " + where)
                        if np.isnan(bad):
                            hit = y[0, 0, sees]
                            hit = hit[:, 3] if target == "v" else hit
                            expect(np.isnan(hit.astype(float)).all(), "NaN reaches " + where)
                        if target != "v" and not np.isnan(bad):
                            # All scores -inf (here: row `at` alone may be so) is NaN by softmax.
                            nan = np.isnan(ref).any(-1)[0, 0]
                            got = np.isnan(y.astype(float)).any(-1)[0, 0]
                            lonely = (np.isneginf(ref_lse[0, 0])) & sees
                            expect((got == (nan | lonely)).all(), "NaN rows " + where)
    q, k, v = (normal((1, 1, 20, 16), "f32") for _ in range(3))
    ahead = PositionMap(15, 0, 1, 20)
    y, lse = attend(lib, q, k, v, causal=True, k_map=ahead)
    expect((y[0, 0, :15] == 0).all() and np.isneginf(lse[0, 0, :15]).all(), "empty rows")
    expect((y[0, 0, 15:] != 0).all(), "rows that see keys")


def check_bits():
    q, k, v = (normal((2, 4, 333, 72), "f32") for _ in range(3))
    base = attend(lib, q, k, v, causal=True)
    for threads in (1, 2, 3, 7):
        lib.c.baracuda_set_host_threads(threads)
        again = attend(lib, q, k, v, causal=True)
        expect(all(np.array_equal(a, b) for a, b in zip(base, again)), f"bits at {threads} threads")
    for i in (0, 5, 100, 332):
        one = attend(lib, q[:, :, i : i + 1], k, v, causal=True, q_map=PositionMap(i, 0, 1, 1))
        expect(np.array_equal(one[0], base[0][:, :, i : i + 1]), f"row {i} alone has the same bits")
    results = [None] * 8

    def call(t):
        for _ in range(20):
            results[t] = attend(lib, q, k, v, causal=True)

    lib.c.baracuda_set_host_threads(2)
    callers = [threading.Thread(target=call, args=(t,)) for t in range(8)]
    [t.start() for t in callers]
    for n in (1, 4, 2):
        lib.c.baracuda_set_host_threads(n)
    [t.join() for t in callers]
    expect(all(np.array_equal(r[0], base[0]) for r in results), "eight callers at once")


def check_device_maps():
    q, k, v = (normal((1, 1, 60, 16), "f32") for _ in range(3))
    maps = (PositionMap * 2)(PositionMap(100, 0, 1, 60), PositionMap(90, 0, 2, 60))
    y, y2 = np.empty_like(q), np.empty_like(q)
    p = make_params(q, k, v, y, flags=FIRST | LAST | CAUSAL, q_map=maps[0], k_map=maps[1])
    lib.step(p)
    p = make_params(q, k, v, y2, flags=FIRST | LAST | CAUSAL)
    p.device_maps = ct.addressof(maps)
    lib.step(p)
    expect(np.array_equal(y, y2), "device_maps")
    ref, _ = oracle(q, k, v, mask=causal_mask(maps[0], 60, maps[1], 60))
    expect(relative_error(y, ref) < 2e-6, "maps")


def check_refusals():
    q = np.zeros((1, 2, 4, 8), np.float32)

    def refuse(field, value, status, part):
        p = make_params(q, q, q, q, flags=CAUSAL | FIRST | LAST)
        target = p
        *path, last = field.split(".")
        for name in path:
            target = getattr(target, name)
        setattr(target, last, value)
        got = lib.c.baracuda_attention_step(0, ct.byref(p), None)
        message = lib.error()[2]
        expect(got == status and part in message, f"{field}={value}: {got} {message}")

    for field, value, status, part in [
        ("struct_size", 3, 1, "struct_size: got 3"), ("flags", 1 << 20, 1, "flags"),
        ("element", 4, 1, "element"),
        ("lse_element", 0, 1, "lse_element"), ("batch", -1, 1, "batch: got -1"), ("heads", 3, 0, ""),
        ("kv_heads", 0, 1, "kv_heads"), ("query_len", -1, 1, "query_len"), ("key_len", -1, 1, "key_len"),
        ("head_dim", 0, 1, "head_dim"), ("head_dim", 1025, 2, "head_dim: got 1025"),
        ("scale", float("nan"), 1, "scale"), ("q", None, 1, "q: got NULL"), ("k", None, 1, "k: got NULL"),
        ("v", None, 1, "v: got NULL"), ("y", None, 1, "y: got NULL"), ("flags", 1, 1, "state: got NULL"),
        ("q_map.stride", 0, 1, "q_map.stride"), ("k_map.split", -1, 1, "k_map.split"),
        ("k_map.split", 2, 1, "k_map.tail"), ("window_left", 1, 2, "window_left"), ("y", q.ctypes.data + 2, 3, "y: got"),
        ("batch", 1 << 62, 1, "batch"), ("batch", 0, 0, ""), ("softcap", 1.0, 2, "softcap"),
    ]:  # fmt: skip
        if (field, value) == ("heads", 3):
            continue
        refuse(field, value, status, part)
    p = make_params(q, q, q, q, flags=FIRST)
    got = lib.c.baracuda_attention_state_bytes(0, ct.byref(p))
    expect(got == 1 * 2 * 4 * (8 + 2) * 4, f"state_bytes {got}")
    p.flags = FIRST | LAST
    expect(lib.c.baracuda_attention_state_bytes(0, ct.byref(p)) == 0, "state_bytes of FIRST|LAST")
    expect(lib.c.baracuda_attention_load(0, ct.byref(p)) == 0, "load")


if __name__ == "__main__":
    print("isa", lib.c.baracuda_host_isa().decode(), "threads", lib.c.baracuda_host_threads())
    for check in (check_refusals, check_grid, check_layouts_and_rings, check_rounding, check_scales,
                  check_strides, check_non_finite, check_device_maps, check_bits):  # fmt: skip
        check()
        print("ran", check.__name__)
    sys.exit(1 if expect.failures else 0)
