"""What the ring's C ABI refuses, and the record of each failure: arguments, tables, statuses."""

from __future__ import annotations

import ctypes as ct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import ring_abi as abi
from helpers.ring_abi import LocalWorld, last_failure
from helpers.ring_problem import Problem
from helpers.sum_ring import SumRing

LIB = abi.library()
MOST = 2**63 - 1
ALL_GATHER, WARM_UP = "baracuda_ring_all_gather", "baracuda_ring_warm_up"


def leave_a_stale_record() -> None:
    """A failure of an earlier call, of the status that a table's functions return here."""
    assert LIB.baracuda_ring_run(None, 0) == abi.INVALID_ARGUMENT


def changed_ops(**functions: Any) -> Any:
    """The host's table with other functions; None for NULL."""
    ops = abi.StreamOps.from_buffer_copy(LIB.baracuda_host_stream_ops().contents)
    types = dict(ops._fields_)
    for name, function in functions.items():
        typed = types[name] is not ct.c_void_p
        setattr(ops, name, types[name](function or 0) if typed else function)
    return ct.pointer(ops)


def refuses(*_: Any) -> int:
    """A function of a table that fails without a record."""
    return abi.INVALID_ARGUMENT


class Foreign:
    """Rank 0 of two, over a transport whose calls are logged and can fail."""

    def __init__(self, failing: str = "", status: int = 42) -> None:
        self.log: list[str] = []

        def logged(name: str) -> Callable[..., int]:
            def answer(*_: Any) -> int:
                self.log.append(name)
                return status if name == failing else 0

            return answer

        self.end = abi.Endpoint(
            struct_size=ct.sizeof(abi.Endpoint),
            transport=abi.Transport(
                struct_size=ct.sizeof(abi.Transport),
                rank=0,
                world_size=2,
                group_start=abi.GroupFn(logged("group_start")),
                send=abi.MessageFn(logged("send")),
                recv=abi.MessageFn(logged("recv")),
                group_end=abi.GroupFn(logged("group_end")),
                abort=abi.AbortFn(lambda _: self.log.append("abort")),
            ),
            exchange=LIB.baracuda_send_recv_exchange(),
            ops=LIB.baracuda_host_stream_ops(),
            device=-1,
        )


def all_gather(end: Any, mine: Any, nbytes: int, everyone: Any) -> int:
    pointer = None if end is None else ct.byref(end)
    return LIB.baracuda_ring_all_gather(pointer, mine, ct.c_int64(nbytes), everyone)


def warm_up(end: Any, buffer: Any) -> int:
    return LIB.baracuda_ring_warm_up(None if end is None else ct.byref(end), buffer)


def memory() -> Any:
    return ct.create_string_buffer(6 * 64)


def assert_refused(status: int, call: str, *texts: str) -> None:
    failure = last_failure()
    assert status == failure.status == abi.INVALID_ARGUMENT, failure
    assert failure.call == call, failure
    assert all(text in failure.message for text in texts), failure


# ---- Set-up: all-gather, warm-up, opening -------------------------------------------------------


@pytest.mark.parametrize(("name", "nth"), [("copy", 1), ("copy", 2), ("stream_synchronize", 1)])
def test_all_gather_records_a_status_without_a_record(name, nth):
    """The first copy brings this rank's bytes in, the second all bytes out."""
    real = LIB.baracuda_host_stream_ops().contents
    count = 0

    def fails(*arguments):
        nonlocal count
        count += 1
        return abi.INVALID_ARGUMENT if count == nth else getattr(real, name)(*arguments)

    world = LocalWorld(1)
    world.endpoints[0].ops = changed_ops(**{name: fails})
    leave_a_stale_record()
    status = all_gather(world.endpoints[0], b"12345678", 8, memory())
    assert_refused(status, name, f"{name} returned 1")
    world.close()


BAD_ENDPOINTS = {
    "endpoint: got NULL": lambda end: None,
    "endpoint.struct_size: got 0": lambda end: abi.Endpoint(),
    "transport.rank: got -1": lambda end: setattr(end.transport, "rank", -1),
    "transport.rank: got 2": lambda end: setattr(end.transport, "rank", 2),
    "transport.world_size: got 0": lambda end: setattr(end.transport, "world_size", 0),
    "transport.send: got NULL": lambda end: setattr(end.transport, "send", abi.MessageFn(0)),
    "transport.struct_size": lambda end: setattr(end.transport, "struct_size", 8),
    "endpoint->ops: got NULL": lambda end: setattr(end, "ops", None),
}


@pytest.mark.parametrize("name", BAD_ENDPOINTS)
def test_setup_refuses_an_endpoint_before_it_sends(name):
    for call in (ALL_GATHER, WARM_UP):
        foreign = Foreign()
        made = BAD_ENDPOINTS[name](foreign.end)
        end = made if name.startswith("endpoint:") or made is not None else foreign.end
        if call == ALL_GATHER:
            status = all_gather(end, b"12345678", 8, memory())
        else:
            status = warm_up(end, memory())
        assert_refused(status, call, name, "must be")
        # The other rank is told, if the endpoint has what that needs.
        is_reachable = end is foreign.end and name != "transport.struct_size"
        assert foreign.log == (["abort"] if is_reachable else [])


def test_a_warm_up_alone_needs_the_transports_functions():
    """A rank alone sends to itself."""
    foreign = Foreign()
    foreign.end.transport.world_size = 1
    foreign.end.transport.group_end = abi.GroupFn(0)
    assert_refused(warm_up(foreign.end, memory()), WARM_UP, "transport.group_end: got NULL")
    assert foreign.log == []


@pytest.mark.parametrize(
    ("name", "mine", "nbytes", "everyone"),
    [
        ("mine: got NULL", False, 8, True),
        ("all: got NULL", True, 8, False),
        ("bytes: got -1", True, -1, True),
        (f"bytes: got {MOST // 2 + 1}, must be in [0, {MOST // 2}]", True, MOST // 2 + 1, True),
    ],
)
def test_all_gather_refuses_its_arguments_before_it_sends(name, mine, nbytes, everyone):
    foreign = Foreign()
    status = all_gather(
        foreign.end, b"12345678" if mine else None, nbytes, memory() if everyone else None
    )
    assert_refused(status, ALL_GATHER, name)
    assert last_failure().rank == 0
    assert foreign.log == ["abort"]


@pytest.mark.parametrize("name", ["copy", "stream_synchronize"])
def test_all_gather_refuses_a_table_without_its_functions(name):
    foreign = Foreign()
    foreign.end.ops = changed_ops(**{name: None})
    status = all_gather(foreign.end, b"12345678", 8, memory())
    assert_refused(status, ALL_GATHER, f"endpoint->ops->{name}: got NULL")


def test_an_all_gather_of_no_bytes_needs_no_memory():
    world = LocalWorld(1)
    assert all_gather(world.endpoints[0], None, 0, None) == abi.OK, last_failure()
    world.close()


def test_warm_up_refuses_a_buffer_of_null_before_it_sends():
    foreign = Foreign()
    assert_refused(warm_up(foreign.end, None), WARM_UP, "buffer: got NULL")
    assert last_failure().rank == 0
    assert foreign.log == ["abort"]


@pytest.mark.parametrize("call", [ALL_GATHER, WARM_UP])
def test_a_refusal_of_one_rank_ends_the_wait_of_the_others(call):
    world = LocalWorld(2, timeout=0)  # it waits without end
    results = []

    def drive() -> None:
        end = world.endpoints[1]
        held = memory()
        status = all_gather(end, held, 8, held) if call == ALL_GATHER else warm_up(end, held)
        results.append((status, last_failure()))

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    end = world.endpoints[0]
    status = all_gather(end, None, 8, memory()) if call == ALL_GATHER else warm_up(end, None)
    refused = last_failure()
    thread.join(20)
    assert not thread.is_alive(), "a rank hangs"
    assert status == refused.status == abi.INVALID_ARGUMENT and "got NULL" in refused.message
    assert results[0][0] == abi.ABORTED
    assert f"aborted by rank 0: {call}" in results[0][1].message
    world.close()


@pytest.mark.parametrize("failing", ["group_start", "send", "recv", "group_end"])
def test_a_warm_up_keeps_the_code_of_a_callers_transport(failing):
    foreign = Foreign(failing)
    leave_a_stale_record()
    assert warm_up(foreign.end, memory()) == abi.TRANSPORT_ERROR
    failure = last_failure()
    assert (failure.status, failure.code, failure.call) == (abi.TRANSPORT_ERROR, 42, failing)
    assert foreign.log.count("group_end") == (0 if failing == "group_start" else 1)


@pytest.mark.parametrize("name", ["stream_create", "event_create"])
def test_open_records_a_status_without_a_record(name):
    end = Foreign().end
    end.ops = changed_ops(**{name: refuses})
    leave_a_stale_record()
    assert_refused(LIB.baracuda_ring_endpoint_open(ct.byref(end)), name, f"{name} returned 1")


OPEN = "baracuda_ring_endpoint_open"


@pytest.mark.parametrize(
    "name", ["stream_create", "stream_destroy", "event_create", "event_destroy"]
)
def test_open_refuses_a_table_without_its_functions(name):
    end = Foreign().end
    end.ops = changed_ops(**{name: None})
    status = LIB.baracuda_ring_endpoint_open(ct.byref(end))
    assert_refused(status, OPEN, f"endpoint->ops->{name}: got NULL")


@pytest.mark.parametrize("name", ["set_device", "get_device"])
def test_ranks_of_devices_need_the_current_device(name):
    end = Foreign().end
    end.ops, end.device = changed_ops(**{name: None}), 0
    text = f"endpoint->ops->{name}: got NULL"
    assert_refused(LIB.baracuda_ring_endpoint_open(ct.byref(end)), OPEN, text)
    assert_refused(all_gather(end, b"12345678", 8, memory()), ALL_GATHER, text)


# ---- Local worlds -------------------------------------------------------------------------------


def test_a_local_world_refuses_null():
    create, abort = "baracuda_local_world_create", "baracuda_local_world_abort"
    assert_refused(LIB.baracuda_local_world_create(2, 1.0, None), create, "world: got NULL")
    assert_refused(LIB.baracuda_local_world_abort(None), abort, "world: got NULL")


def test_a_local_transport_refuses_what_it_cannot_fill():
    call = "baracuda_local_transport"
    world = LocalWorld(1)
    end = abi.Endpoint(struct_size=ct.sizeof(abi.Endpoint), device=-1, ops=world.ops)
    assert_refused(LIB.baracuda_local_transport(None, 0, end), call, "world: got NULL")
    assert_refused(LIB.baracuda_local_transport(world.handle, 0, None), call, "endpoint: got NULL")
    end.struct_size = 16
    text = f"endpoint.struct_size: got 16, must be {ct.sizeof(abi.Endpoint)}"
    assert_refused(LIB.baracuda_local_transport(world.handle, 0, end), call, text)
    end.struct_size = ct.sizeof(abi.Endpoint)
    for name in ("record", "wait", "copy", "event_create", "event_destroy"):
        end.ops = changed_ops(**{name: None})
        text = f"endpoint->ops->{name}: got NULL"
        assert_refused(LIB.baracuda_local_transport(world.handle, 0, end), call, text)
    assert not end.transport.struct_size
    world.close()


def test_a_local_transport_records_a_status_without_a_record():
    handle = ct.c_void_p()
    assert LIB.baracuda_local_world_create(1, 1.0, handle) == abi.OK
    ops = changed_ops(event_create=refuses)
    end = abi.Endpoint(struct_size=ct.sizeof(abi.Endpoint), device=-1, ops=ops)
    leave_a_stale_record()
    status = LIB.baracuda_local_transport(handle, 0, end)
    assert_refused(status, "event_create", "event_create returned 1")
    assert LIB.baracuda_local_world_destroy(handle) == abi.OK


@pytest.mark.parametrize("name", ["record", "wait", "copy"])
def test_a_local_message_records_a_status_without_a_record(name):
    """Also where an earlier failure had the same status."""
    world = LocalWorld(1, changed_ops(**{name: refuses}))
    transport, held = world.endpoints[0].transport, memory()
    leave_a_stale_record()
    assert transport.group_start(transport.context) == abi.OK
    assert transport.send(transport.context, ct.addressof(held), 8, 0, None) == abi.OK
    assert transport.recv(transport.context, ct.addressof(held) + 8, 8, 0, None) == abi.OK
    assert_refused(transport.group_end(transport.context), name, f"{name} returned 1")
    assert last_failure().rank == 0
    world.close()


# ---- Runs ---------------------------------------------------------------------------------------


class Ring:
    """A local ring and the calls of its ranks. `refused` checks that a run of them moves nothing."""

    def __init__(self, world_size: int) -> None:
        self.problem = Problem(world_size, abi.CONTIGUOUS, False)
        self.world = LocalWorld(world_size, timeout=2.0)
        self.calls = list(self.problem.calls(self.world.endpoints))

    def run(self, *ranks: int) -> int:
        calls = [self.calls[rank] for rank in ranks]
        return LIB.baracuda_ring_run((abi.Call * len(calls))(*calls), len(calls))

    def refused(self, *ranks: int) -> abi.Failure:
        assert self.run(*ranks) == abi.INVALID_ARGUMENT
        assert (self.problem.y == 77).all()
        assert last_failure().call == "baracuda_ring_run"
        return last_failure()

    def close(self) -> None:
        """Nothing was aborted, so the ring still runs."""
        assert self.run(*range(self.problem.world_size)) == abi.OK, last_failure()
        assert self.problem.is_right()
        self.world.close()


@pytest.mark.parametrize("name", ["grant", "open", "post", "close", "complete", "wait", "join"])
def test_an_exchange_without_a_function_is_refused(name):
    ring = Ring(2)
    end = ring.world.endpoints[0]
    exchange = abi.Exchange.from_buffer_copy(abi.Exchange.from_address(end.exchange))
    setattr(exchange, name, None)
    real, end.exchange = end.exchange, ct.addressof(exchange)
    text = f"endpoint->exchange->{name}: got NULL, must be given"
    assert text in ring.refused(0, 1).message
    assert_refused(LIB.baracuda_ring_endpoint_open(ct.byref(end)), OPEN, text)
    end.exchange = real
    ring.close()


@pytest.mark.parametrize("name", ["record", "wait", "multiprocessors"])
def test_a_run_refuses_a_table_without_its_functions(name):
    ring = Ring(2)
    end = ring.world.endpoints[1]
    end.ops = changed_ops(**{name: None}, **({"pause": 1} if name == "multiprocessors" else {}))
    assert f"endpoint->ops->{name}: got NULL, must be given" in ring.refused(0, 1).message
    end.ops = ring.world.ops
    ring.close()


def test_sums_need_a_clear():
    ring, world = SumRing(2), LocalWorld(2)
    world.endpoints[0].ops = changed_ops(clear=None)
    calls = ring.calls(world.endpoints)
    status = LIB.baracuda_ring_run(calls, 2)
    assert_refused(status, "baracuda_ring_run", "endpoint->ops->clear: got NULL")
    world.endpoints[0].ops = world.ops
    world.close()


def test_each_rank_has_one_call():
    ring = Ring(2)
    failure = ring.refused(0, 0)
    assert "calls[1]: got rank 0, which another call has" in failure.message
    assert "count: got 3, must be at most 2" in ring.refused(0, 1, 1).message
    ring.close()
    # Among more ranks than the check looks at together.
    large = Ring(70)
    assert "calls[3]: got rank 68," in large.refused(69, 68, 1, 68, 0).message
    large.close()


@pytest.mark.parametrize("world_size", [3, 70])
def test_hops_start_at_the_rank_and_visit_every_chunk(world_size):
    ring = Ring(world_size)
    hops, last = ring.problem.hops[0], world_size - 1
    for step, origin, text in [
        (0, 1, "hops[0].origin: got 1, must be 0, the rank itself"),
        (last, 0, f"hops[{last}].origin: got 0 a second time, must be every rank once"),
        (1, hops[last].origin, f"hops[{last}].origin: got {hops[last].origin} a second time"),
    ]:
        real, hops[step].origin = hops[step].origin, origin
        failure = ring.refused(*range(world_size))
        assert text in failure.message and failure.rank == 0
        hops[step].origin = real
    ring.close()


def test_two_calls_of_a_hop_must_agree_on_it():
    ring = Ring(3)
    for rank, step, name, value, text in [
        (0, 1, "send_to", 2, "calls[0].hops[1].send_to: got 2, whose recv_from is 1, must be"),
        (2, 0, "recv_from", 0, "calls[1].hops[0].send_to: got 2, whose recv_from is 0, must be"),
    ]:
        hop = ring.problem.hops[rank][step]
        real = getattr(hop, name)
        setattr(hop, name, value)
        assert text in ring.refused(0, 1, 2).message
        setattr(hop, name, real)
    # Rank 1 waits for rank 0, which sends to rank 2, whose call is another thread's.
    ring.problem.hops[0][0].send_to = 2
    text = "calls[1].hops[0].recv_from: got 0, whose send_to is 2, must be the rank whose send_to"
    assert text in ring.refused(0, 1).message
    ring.problem.hops[0][0].send_to = 1
    # Nothing is sent after the last step, so its hop is not read.
    for rank in range(3):
        ring.problem.hops[rank][2].send_to = 7
    ring.close()


def test_pieces_of_payloads_that_a_call_does_not_have_are_null():
    ring = Ring(2)
    found = set()

    def launch(_: Any, at: Any) -> int:
        step = at.contents
        for place in range(1, abi.PAYLOADS):
            found.update(step.chunk[place])
            found.update(step.received[place])
        found.update([*step.chunk[0][2:], *step.received[0]])
        return abi.OK

    program = abi.Program.from_buffer_copy(LIB.baracuda_attention_ring_program().contents)
    program.launch = abi.ProgramFn(launch)
    for call in ring.calls:
        call.program = ct.pointer(program)
    assert ring.run(0, 1) == abi.OK, last_failure()
    assert found == {None}
    ring.world.close()


# ---- Functions without a status -----------------------------------------------------------------


@pytest.mark.parametrize(("rank", "world_size"), [(0, 0), (0, -1), (-1, 2), (2, 2), (3, 2)])
def test_a_schedule_of_no_rank_is_not_written(rank, world_size):
    hops = (abi.Hop * 4)(*[abi.Hop(7, 7, 7)] * 4)
    LIB.baracuda_ring_schedule(rank, world_size, hops)
    assert {(hop.origin, hop.send_to, hop.recv_from) for hop in hops} == {(7, 7, 7)}


def test_a_schedule_without_hops_is_not_written():
    LIB.baracuda_ring_schedule(0, 2, None)


@pytest.mark.parametrize("missing", ["call", "endpoint", "program", "payloads"])
def test_a_call_that_lacks_something_has_no_rounds(missing):
    ring = Ring(2)
    call = abi.Call.from_buffer_copy(ring.calls[0])
    assert LIB.baracuda_ring_has_exchange(ct.byref(call), 0) == 1
    if missing != "call":
        setattr(call, missing, None)
    given = None if missing == "call" else ct.byref(call)
    assert LIB.baracuda_ring_has_exchange(given, 0) == 0
    assert LIB.baracuda_ring_has_sum(given, 0) == 0
    messages = abi.Round(number=5, send_count=7)
    LIB.baracuda_ring_messages(given, 0, ct.byref(messages))
    assert not np.frombuffer(messages, np.uint8).any()


def test_the_messages_of_a_call_without_hops_are_none():
    ring = Ring(2)
    LIB.baracuda_ring_messages(ct.byref(ring.calls[0]), 0, None)
    messages = abi.Round(number=5, send_count=7)
    ring.calls[0].hops = None
    LIB.baracuda_ring_messages(ct.byref(ring.calls[0]), 0, ct.byref(messages))
    assert not np.frombuffer(messages, np.uint8).any()
    ring.world.close()
