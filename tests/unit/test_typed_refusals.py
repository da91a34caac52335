"""Values of a wrong kind get a typed error that names the argument, before anything is sent."""

import array

import numpy as np
import pytest

import baracuda_kernels as bk

HOST = bk.Stream.host()
HUGE = 10**400  # more than a float or any C integer holds
D = bk.RingAttentionDescriptor(1, 1, 4, 4, 16)
ID = bytes(128)


@pytest.fixture(scope="module")
def plan():
    return bk.RingAttentionPlan.select(D, HOST)


def arguments():
    return bk.RingAttentionArgs(**{name: np.zeros((1, 1, 4, 16), np.float32) for name in "qkvy"})


class Slots:
    """A transport to which no weak reference can be made."""

    __slots__ = ("rank", "world_size")

    def __init__(self):
        self.rank, self.world_size = 0, 1

    def group_start(self): ...

    def send(self, buffer, peer, stream): ...

    def recv(self, buffer, peer, stream): ...

    def group_end(self): ...


class Partial:
    """A transport that cannot receive."""

    rank, world_size, recv = 0, 2, None

    def group_start(self): ...

    def send(self, buffer, peer, stream): ...

    def group_end(self): ...


class Closed:
    """A stream whose handle is gone."""

    device_index = 0

    @property
    def ptr(self):
        raise RuntimeError("it was destroyed")


def join(**given):
    good = {"world_size": 1, "unique_id": ID, "rank": 0, "device": "host"}
    return bk.Communicator.init_rank(**{**good, **given})


WRONG = {
    "an id of ints": ("unique_id: got list", lambda: bk.UniqueId.from_bytes([0] * 128)),
    "an id that is a number": ("unique_id: got int", lambda: bk.UniqueId.from_bytes(128)),
    "an id that is a text": ("unique_id: got str", lambda: bk.UniqueId.from_bytes("a" * 128)),
    "no id": ("unique_id: got NoneType", lambda: bk.UniqueId.from_bytes(None)),
    "made of no id": ("unique_id: got NoneType", lambda: bk.UniqueId(None)),
    "made of a short id": ("unique_id: got 3 bytes, must be 128", lambda: bk.UniqueId(b"abc")),
    "joined by a number": ("unique_id: got int", lambda: join(unique_id=128)),
    "the host as a CUDA stream": ("stream: got Stream.host", lambda: bk.Stream(HOST)),
    "a stream that is gone": (
        "stream: got a Closed .*it was destroyed", lambda: bk.Stream(Closed())),
    "a huge ordinal": ("device: got 1099511627776", lambda: bk.Stream(5, device=2**40)),
    "a huge ordinal of a communicator": ("device: got 1000", lambda: join(device=HUGE)),
    "an ordinal that is a bool": ("device: got True", lambda: bk.Stream(5, device=True)),
    "an ordinal that is an array": ("device: got array", lambda: join(device=np.zeros(3))),
    "ordinals that are an array": (
        "device: got array", lambda: bk.LocalCommunicator.ring(2, device=np.zeros(2))),
    "one ordinal for all": ("devices: got 3, must be", lambda: bk.Communicator.init_all(3)),
    "ordinals in a list": ("device: got .0.", lambda: bk.Communicator.init_all([[0]])),
    "a huge scale": (
        "scale: got", lambda: bk.RingAttentionDescriptor(1, 1, 4, 4, 16, scale=HUGE)),
    "a huge timeout": ("timeout: got", lambda: join(timeout=HUGE)),
    "a huge timeout of a local ring": (
        "timeout: got", lambda: bk.LocalCommunicator.ring(2, timeout=HUGE)),
    "an exchange that is a list": ("exchange: got ..,", lambda: join(exchange=[])),
    "no transport": (
        "transport: got a NoneType without rank, must have it",
        lambda: bk.TransportCommunicator(None)),
    "a transport without a method": (
        "transport: got a Partial without a method recv, must have it",
        lambda: bk.TransportCommunicator(Partial())),
    "a transport without a method, by of": (
        "transport: got a Partial without a method recv",
        lambda: bk.TransportCommunicator.of(Partial(), -1)),
    "a device of a transport": (
        "device: got 'host', must be an integer",
        lambda: bk.TransportCommunicator.of(Partial(), "host")),
    "a text in place of fields": (
        "RingAttentionDescriptor.from_dict: got str, must be a dict",
        lambda: bk.RingAttentionDescriptor.from_dict("ab")),
    "no guarantee": (
        "PrecisionGuarantee.from_dict: got NoneType, must be a dict",
        lambda: bk.PrecisionGuarantee.from_dict(None)),
    "keys of several kinds": (
        "KernelSku.from_dict: unknown keys", lambda: bk.KernelSku.from_dict({1: 2, "a": 3})),
}


@pytest.mark.parametrize(("says", "call"), WRONG.values(), ids=WRONG)
def test_a_value_of_a_wrong_kind(says, call):
    with pytest.raises(bk.InvalidProblemError, match=f"^{says}"):
        call()


class Unwilling:
    def __index__(self):
        raise TypeError("no number")

    def __repr__(self):  # without an address: it names a test, whose name is the same in all processes
        return "Unwilling()"


NO_INTEGERS = [np.zeros(3, int), np.array(1.0), np.ones(1, int), np.array(True), Unwilling()]


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_arrays_of_several_numbers_and_of_none_are_no_integers(plan, value):
    """They have __index__, which raises TypeError."""
    step = {name: np.zeros((1, 1, 4, 16), np.float32) for name in "qkvy"}
    for name, call in {
        "query_len": lambda: bk.FlashSdpaDescriptor(1, 1, value, 4, 16),
        "num_kv_heads": lambda: bk.RingAttentionDescriptor(1, 1, 4, 4, 16, num_kv_heads=value),
        "tensor: shape": lambda: bk.TensorRef(4096, (value,), None, "F32", device=-1),
        "tensor: device": lambda: bk.TensorRef(4096, (4,), None, "F32", device=value),
        "slice: shape": lambda: bk.DeviceSlice(np.zeros(8), value),
        "device": lambda: bk.Stream(5, device=value),
        "world_size": lambda: plan.can_implement(arguments(), world_size=value),
        "rank": lambda: plan.step(HOST, **step, rank=value, world_size=2),
    }.items():
        with pytest.raises(bk.InvalidProblemError, match=f"^{name}: got .*, must be an integer"):
            call()


@pytest.mark.parametrize("world_size", [10**30, 2**31, True, 2.0, "2", 0])
def test_world_sizes(plan, world_size):
    with pytest.raises(bk.InvalidProblemError, match="^world_size: got"):
        plan.can_implement(arguments(), world_size=world_size)
    given = {name: np.zeros((1, 1, 4, 16), np.float32) for name in "qkvy"}
    with pytest.raises(bk.InvalidProblemError, match="^world_size: got"):
        plan.step(HOST, **given, world_size=world_size)


def test_a_transport_without_weak_references(plan):
    args = arguments()
    with pytest.raises(bk.InvalidProblemError, match="^transport: got a Slots, must allow weak"):
        plan.run(HOST, Slots(), args)
    assert not np.asarray(args.y).any()


def test_what_is_still_taken(plan):
    plan.can_implement(arguments(), world_size=np.int64(1))
    assert bk.Stream(5, device=np.int32(1)).device == 1
    assert bk.LocalCommunicator.ring(np.int64(3)).world_size == 3
    y = []
    for one in (int, np.int64):
        y.append(np.zeros((1, 1, 4, 16), np.float32))
        x = np.ones((1, 1, 4, 16), np.float32)
        causal = bk.RingAttentionPlan.select(bk.RingAttentionDescriptor(1, 1, 4, 4, 16, None, True), HOST)
        causal.step(HOST, q=x, k=x, v=x, y=y[-1], rank=one(1), origin=one(0), world_size=one(2))
    assert y[0].all() and np.array_equal(*y)
    assert bk.LocalCommunicator.ring(2, device=-1, timeout=float("inf")).world_size == 2
    for data in (bytearray(ID), memoryview(ID), np.zeros(16), array.array("B", ID)):
        assert bk.UniqueId.from_bytes(data) == bk.UniqueId(ID)
