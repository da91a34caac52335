"""The C ABI of the attention step through ctypes, and a float64 oracle, for the native tests."""

import ctypes as ct

import ml_dtypes
import numpy as np

from .c_headers import constants, structure

FIRST, LAST, CAUSAL = constants("STEP_", "FIRST", "LAST", "CAUSAL")
ELEMENT = dict(zip(("f16", "bf16", "f32", "f64"), constants("", "F16", "BF16", "F32", "F64")))
DTYPE = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}


class _Positions:
    def positions(self, count):
        i = np.arange(count)
        return np.where(
            i < self.split,
            self.head + self.stride * i,
            self.tail + self.stride * (i - self.split),
        )


PositionMap = structure("position_map", _Positions)
Strides = structure("strides")
Params = structure("attention_step_params")
Error = structure("error")


class Library:
    def __init__(self, path):
        self.c = ct.CDLL(path)
        self.c.baracuda_last_error.restype = ct.POINTER(Error)
        self.c.baracuda_host_isa.restype = ct.c_char_p
        for name in ("state_bytes", "load", "step"):
            f = getattr(self.c, "baracuda_attention_" + name)
            f.argtypes = [ct.c_int32, ct.POINTER(Params)] + [ct.c_void_p] * (name == "step")
        self.c.baracuda_attention_state_bytes.restype = ct.c_int64

    def error(self):
        e = self.c.baracuda_last_error().contents
        return e.status, e.call.decode(), e.message.decode()

    def step(self, params):
        status = self.c.baracuda_attention_step(0, ct.byref(params), None)
        if status:
            raise RuntimeError(self.error())


def strides(a):
    assert a.strides[3] == a.itemsize or a.shape[3] <= 1 or not a.size
    return Strides(*(s // a.itemsize for s in a.strides[:3]))


def contiguous(rank, length, world):
    return PositionMap(rank * length, 0, 1, length)


def zigzag(rank, length, world):
    split = (length + 1) // 2
    tail = world * split + (world - 1 - rank) * (length - split)
    return PositionMap(rank * split, tail, 1, split)


def striped(rank, length, world):
    return PositionMap(rank, 0, world, length)


def make_params(q, k, v, y, lse=None, state=None, element="f32", **options):
    p = Params(struct_size=ct.sizeof(Params), element=ELEMENT[element])
    p.flags = options.get("flags", FIRST | LAST)
    p.lse_element = ELEMENT[options.get("lse_element", "f32")]
    p.batch, p.heads, p.query_len, p.head_dim = q.shape
    p.kv_heads, p.key_len = k.shape[1], k.shape[2]
    scale = options.get("scale")
    p.scale = p.head_dim**-0.5 if scale is None else scale
    for name, a in (("q", q), ("k", k), ("v", v), ("y", y)):
        setattr(p, name, a.ctypes.data)
        setattr(p, name + "_strides", strides(a))
    p.lse = None if lse is None else lse.ctypes.data
    p.state = None if state is None else state.ctypes.data
    p.q_map = options.get("q_map") or PositionMap(0, 0, 1, p.query_len)
    p.k_map = options.get("k_map") or PositionMap(0, 0, 1, p.key_len)
    return p


def attend(lib, q, k, v, element="f32", causal=False, **options):
    """One FIRST|LAST step; (y, lse)."""
    y = np.full(q.shape, 77, q.dtype)
    lse_dtype = DTYPE[options.get("lse_element", "f32")]
    lse = np.full(q.shape[:3], 77, lse_dtype)
    flags = FIRST | LAST | (CAUSAL if causal else 0)
    lib.step(make_params(q, k, v, y, lse, element=element, flags=flags, **options))
    return y, lse


def attend_chunks(lib, q, chunks, element="f32", causal=False, k_maps=None, **options):
    """The chunks as steps through one state; (y, lse)."""
    y = np.full(q.shape, 77, q.dtype)
    lse = np.full(q.shape[:3], 77, np.float32)
    rows, d = int(np.prod(q.shape[:3])), q.shape[3]
    state = np.full(rows * (d + 2), np.nan, np.float64 if element == "f64" else np.float32)
    for s, (k, v) in enumerate(chunks):
        flags = (CAUSAL if causal else 0) | (FIRST if s == 0 else 0)
        flags |= LAST if s == len(chunks) - 1 else 0
        if k_maps is not None:
            options["k_map"] = k_maps[s]
        lib.step(make_params(q, k, v, y, lse, state, element, flags=flags, **options))
    return y, lse


def oracle(q, k, v, scale=None, mask=None):
    """(y, lse) in float64; mask [Q, K] is True where a key is seen."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    with np.errstate(all="ignore"):
        s = np.einsum("bhqd,bhkd->bhqk", q, k) * scale
        if mask is not None:
            s = np.where(mask, s, -np.inf)
        m = s.max(-1, keepdims=True) if s.shape[-1] else np.full((*s.shape[:3], 1), -np.inf)
        p = np.exp(s - np.where(np.isneginf(m), 0, m))
        if mask is not None:
            p = np.where(mask, p, 0)
        l = p.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bhkd->bhqd", p, v) / np.where(l == 0, 1, l)
        lse = np.log(l[..., 0]) + np.where(l[..., 0] == 0, 0, m[..., 0])
    return y, lse


def causal_mask(q_map, q_len, k_map, k_len):
    return k_map.positions(k_len)[None, :] <= q_map.positions(q_len)[:, None]


def relative_error(out, ref):
    out, ref = out.astype(np.float64), ref.astype(np.float64)
    return np.linalg.norm(out - ref) / max(np.linalg.norm(ref), 1e-300)
