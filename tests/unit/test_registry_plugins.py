"""Entry points that are broken, slow, interrupted or wrong, and the registry without them."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest

import baracuda_kernels as bk
from baracuda_kernels import registry

SKU = """
import baracuda_kernels as bk
from baracuda_kernels import registry
from baracuda_kernels.registry import Candidate, OpSpec, ProblemOption

class Descriptor:
    def __init__(self, n=1):
        self.n = n

class Plan:
    pass

SKU = bk.KernelSku("SCAN", 7, "F32", None, None, None, "HOST", "HOST",
                   bk.PrecisionGuarantee("F32", "F32", True, True))

def spec(name="plug_op", skus=lambda: [("plug", SKU)], **more):
    return OpSpec.forward_only(name, Descriptor, Plan, skus,
                               lambda *a: [Candidate("plug", SKU)], **more)
"""


def plug_in(folder, name, source):
    """A module of that source in the folder, with an entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[baracuda_kernels.ops]\n{name} = {name}:SPEC\n")
    (folder / f"{name}.py").write_text(SKU + textwrap.dedent(source))


def python(folder, script):
    """What a script prints, with the folder's plug-ins installed."""
    head = "import sys; sys.path.insert(0, sys.argv[1])\nfrom baracuda_kernels import registry\n"
    run = subprocess.run([sys.executable, "-c", head + textwrap.dedent(script), folder], cwd=folder,
                         check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


# Imports `slow` in one thread and asks the registry in another, and ends after 60 s if they wait.
TWO_THREADS = """
    import faulthandler, threading
    faulthandler.dump_traceback_later(60, exit=True)
    slow_begins, registry_asked = threading.Event(), threading.Event()
    sys.modules["events"] = sys.modules["__main__"]
    def ask():
        assert slow_begins.wait(30)
        threading.Timer(0.5, registry_asked.set).start()
        print("plug_op" in registry.ops())
    threads = [threading.Thread(target=ask), threading.Thread(target=lambda: __import__("slow"))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print("plug_op" in registry.ops(), registry.left_out() == {})
"""


@pytest.mark.parametrize("asks", ["", "assert 'ring_attention' in registry.ops()"])
def test_a_plug_in_registers_itself_while_another_thread_asks(tmp_path, asks):
    """The one thread waits for the module, whose import must not wait for the registry."""
    plug_in(tmp_path, "slow", f"""
        import events
        SPEC = None if {bool(asks)} else spec()
        events.slow_begins.set()
        assert events.registry_asked.wait(30)
        {asks or 'pass'}
        SPEC = SPEC or spec()
        registry.register(SPEC)
    """)
    assert python(tmp_path, TWO_THREADS) == ["True", "True", "True"]


def test_a_plug_in_asks_the_registry_before_it_has_its_spec(tmp_path):
    plug_in(tmp_path, "asks", """
        assert "plug_op" not in registry.ops() and registry.left_out() == {}
        SPEC = spec()
    """)
    script = "print('plug_op' in registry.ops(), registry.left_out() == {})"
    assert python(tmp_path, "import asks\n" + script) == ["True", "True"]
    assert python(tmp_path, script) == ["True", "True"]


def test_threads_that_ask_at_once_have_all_ops(tmp_path):
    plug_in(tmp_path, "made", """
        import time
        def SPEC():
            time.sleep(0.2)
            return spec()
    """)
    assert python(tmp_path, """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: "plug_op" in registry.ops(), range(8)))
        print(all(found), registry.left_out() == {})
    """) == ["True", "True"]


def test_ctrl_c_during_the_first_call_loses_no_plug_in(tmp_path):
    plug_in(tmp_path, "healthy", "SPEC = spec()")
    plug_in(tmp_path, "interrupted", """
        import pathlib
        once = pathlib.Path(__file__).with_name("interrupted_once")
        if not once.exists():
            once.touch()
            raise KeyboardInterrupt
        class Other:
            pass
        SPEC = OpSpec.forward_only("other_op", Other, Plan, lambda: [("plug", SKU)], list)
    """)
    assert python(tmp_path, """
        try:
            print(registry.ops())
        except KeyboardInterrupt:
            print("interrupted")
        print({"plug_op", "other_op"} <= set(registry.ops()), registry.left_out() == {})
    """) == ["interrupted", "True", "True"]


def test_whatever_else_a_plug_in_raises_leaves_it_out(tmp_path):
    plug_in(tmp_path, "skips", "class Skipped(BaseException): pass\nraise Skipped('not here')")
    assert python(tmp_path, """
        print("ring_attention" in registry.ops(), *registry.left_out().values())
    """) == ["True", "Skipped:", "not", "here"]


WRONG = {
    "no family": "spec(skus=lambda: [SKU])",
    "no sku": "spec(skus=lambda: [('plug', None)])",
    "an iterator": "spec(skus=(lambda found: lambda: found)(iter([('plug', SKU)])))",
    "name": "spec(name=5)",
    "options": "spec(options=('n',))",
    "one option": "spec(options=ProblemOption('n', int, 3))",
    "arch": "spec(options=(ProblemOption('arch', int, 3),))",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_spec_is_left_out_and_breaks_nothing(tmp_path, kind):
    plug_in(tmp_path, "wrong", f"SPEC = lambda: {WRONG[kind]}")
    found = python(tmp_path, """
        from baracuda_kernels.cli import main
        sys.argv[1:] = ["skus"]
        print(*registry.ops(), len(registry.skus()) > 20, *registry.left_out().values())
        for command in ("skus", "info", "explain --arch host"):
            sys.argv[1:] = command.split()
            try:
                main()
            except SystemExit as end:
                assert not end.code, command
    """)
    assert found[:4] == ["flash_sdpa", "ring_attention", "True", "InvalidProblemError:"]


def descriptor():
    return dataclasses.make_dataclass("Descriptor", ["n"])


def spec(**changes):
    given = {"name": "op", "descriptor_type": descriptor(), "plan_types": {"FORWARD": list},
             "skus": list, "candidates": list}
    return registry.OpSpec(**{**given, **changes})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: spec(name="my-op"), "name: got 'my-op', must be a Python name"),
        (lambda: spec(name=5), "name: got 5"),
        (lambda: spec(descriptor_type="D"), "descriptor_type: got 'D', must be a type"),
        (lambda: spec(skus=[]), r"skus: got \[\], must be a function"),
        (lambda: spec(candidates=None), "candidates: got None, must be a function"),
        (lambda: spec(options=[1]), r"options: got \[1\], must be a tuple of ProblemOption"),
        (lambda: spec(options=(registry.ProblemOption("n", int),) * 2), "must be different ones"),
        (lambda: registry.ProblemOption("json", bool), "name: got 'json', must be a Python name"),
        (lambda: registry.ProblemOption("a-b", int), "name: got 'a-b'"),
        (lambda: registry.ProblemOption("n", "int"), "type: got 'int', must be a type"),
    ],
)
def test_a_spec_checks_what_it_is_given(make, says):
    with pytest.raises(bk.InvalidProblemError, match=says):
        make()


def test_what_explain_uses_itself_is_reserved():
    import click

    from baracuda_kernels._core._selection import _RESERVED
    from baracuda_kernels.cli._explain import explain

    with click.Context(explain, info_name="explain") as context:
        own = context.command.get_params(context)
    words = {o.removeprefix("--") for one in own for o in one.opts if o.startswith("--")}
    names = {one.name for one in own} | words
    assert {n for n in names if not n.startswith("_")} | {"op"} <= set(_RESERVED)


def test_an_option_keeps_its_letters(tmp_path):
    plug_in(tmp_path, "letters", """
        import dataclasses
        Descriptor = dataclasses.make_dataclass("Descriptor", ["N"])
        SPEC = spec(options=(ProblemOption("N", int, 3),))
    """)
    found = python(tmp_path, """
        from baracuda_kernels.cli import main
        sys.argv[1:] = ["explain", "--op", "plug_op", "--N", "4"]
        main()
    """)
    assert "selected" in found


def test_explain_while_another_thread_registers(monkeypatch):
    import threading

    registry.ops()
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    problem, failures, stop = bk.FlashSdpaDescriptor(1, 1, 8, 8, 8), [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                registry.explain(problem, "host")
            except Exception as error:  # noqa: BLE001
                failures.append(error)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for i in range(500):
            registry.register(spec(name=f"op{i}"))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failures, failures


def test_explain_takes_what_select_takes():
    class Mine(bk.FlashSdpaDescriptor):
        pass

    problem = Mine(1, 1, 8, 8, 8, element="F32")
    chosen = registry.explain(problem, "host")
    assert chosen.op == "flash_sdpa"
    assert bk.FlashSdpaPlan.select(problem, bk.Stream.host()).sku == chosen.selected


@pytest.mark.parametrize("name", [[], None, 7])
def test_a_name_that_is_none(name):
    with pytest.raises(bk.UnsupportedError, match=r"op: got .*, must be one of flash_sdpa"):
        registry.get(name)
