"""Tools: found where users put them, and refused with a reason where they cannot work."""

from __future__ import annotations

import asyncio
import sys

import pytest

from snakepit_kernel import Adapter, SessionContext, ToolNotFound, tool
from snakepit_kernel.tools.registry import AdapterError, ToolRegistry, import_adapter

CONTEXT = SessionContext(session_id="s", pool="p", worker="w")


class Recorder(Adapter):
    """Writes down what happens to it."""

    events: list[str] = []

    def initialize(self):
        self.events.append("initialize")

    def cleanup(self):
        self.events.append("cleanup")

    @tool
    def work(self, x: int) -> int:
        """Do some work."""
        self.events.append(f"work in {self.context.session_id}")
        return 2 * x

    @tool(name="fail.hard", description="Raises.", idempotent=True, timeout=2.5)
    def fail(self):
        raise KeyError("no")


class AsyncRecorder(Recorder):
    events: list[str] = []

    async def initialize(self):
        await asyncio.sleep(0)
        self.events.append("initialize")

    async def cleanup(self):
        self.events.append("cleanup")


def run(registry: ToolRegistry, name: str, **kwargs):
    found = registry.get(name)
    ready = found.bind(CONTEXT, (), kwargs)
    return asyncio.run(ready()) if found.is_async else ready()


@pytest.fixture(params=[Recorder, AsyncRecorder], ids=["sync", "async"])
def registry(request):
    request.param.events.clear()
    registry = ToolRegistry()
    registry.load(request.param)
    registry.events = request.param.events
    return registry


def test_each_call_lives_from_initialize_to_cleanup(registry):
    assert run(registry, "work", x=4) == 8
    assert registry.events == ["initialize", "work in s", "cleanup"]


def test_cleanup_runs_once_after_an_error_too(registry):
    with pytest.raises(KeyError):
        run(registry, "fail.hard")

    assert registry.events == ["initialize", "cleanup"]


def test_each_call_has_an_instance_of_its_own():
    class Counting(Adapter):
        def initialize(self):
            self.seen = getattr(self, "seen", 0) + 1

        @tool
        def count(self):
            return self.seen

    registry = ToolRegistry()
    registry.load(Counting)

    assert [run(registry, "count") for _ in range(3)] == [1, 1, 1]


def test_an_error_in_cleanup_does_not_hide_the_first_error():
    class Clumsy(Adapter):
        def cleanup(self):
            raise RuntimeError("second")

        @tool
        def fail(self):
            raise ValueError("first")

        @tool
        def work(self): ...

    registry = ToolRegistry()
    registry.load(Clumsy)

    with pytest.raises(ValueError, match="first") as caught:
        run(registry, "fail")
    assert caught.value.__notes__ == ["cleanup() failed as well: RuntimeError('second')"]
    with pytest.raises(RuntimeError, match="second"):
        run(registry, "work")


def test_a_tool_is_described_by_its_options_signature_and_docstring(registry):
    work, fail = sorted(registry.infos(), key=lambda info: info.name, reverse=True)

    assert (work.name, work.description, work.signature) == (
        "work",
        "Do some work.",
        "(x: int) -> int",
    )
    assert (fail.name, fail.description, fail.idempotent, fail.timeout) == (
        "fail.hard",
        "Raises.",
        True,
        2.5,
    )


def test_a_module_of_functions_is_an_adapter(tmp_path, monkeypatch):
    (tmp_path / "shop_functions.py").write_text(
        "from snakepit_kernel import tool\n@tool\ndef price(item: str) -> float:\n    return 2.5\n"
        "def helper(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = ToolRegistry()

    registry.load("shop_functions")

    assert [info.name for info in registry.infos()] == ["price"]
    assert run(registry, "price", item="tea") == 2.5
    del sys.modules["shop_functions"]


def test_an_unknown_tool_is_answered_with_those_that_exist(registry):
    with pytest.raises(ToolNotFound, match="did you mean 'work'"):
        registry.get("wrok")


class Empty(Adapter): ...


@pytest.mark.parametrize(
    ("adapter", "error", "said"),
    [
        (Empty, AdapterError, "has no tools; mark its methods with @tool"),
        ("json", AdapterError, "has no tools; mark its functions with @tool"),
        ("no_such_module_anywhere", ModuleNotFoundError, "no_such_module_anywhere"),
        ("json:JSONDecodr", AdapterError, "did you mean 'JSONDecoder'"),
        ("json:", AdapterError, "must be 'module:Class' or 'module'"),
        (":Shop", AdapterError, "must be 'module:Class' or 'module'"),
        (3, AdapterError, "a class or a module, not int"),
    ],
    ids=str,
)
def test_an_adapter_that_cannot_work_says_why(adapter, error, said):
    with pytest.raises(error, match=said):
        ToolRegistry().load(adapter)


def test_a_nested_class_can_be_named():
    assert import_adapter("json:JSONDecoder.decode") is not None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"name": "no spaces"}, ValueError, "tool name 'no spaces' must be 1 to 64 characters"),
        ({"name": ""}, ValueError, "must be 1 to 64"),
        ({"name": 3}, TypeError, "must be a string"),
        ({"timeout": 0}, ValueError, "must be positive seconds"),
        ({"speed": 3}, TypeError, "speed"),
    ],
    ids=str,
)
def test_a_wrong_option_of_tool_is_named(options, error, said):
    with pytest.raises(error, match=said):
        tool(**options)


def test_tool_decorates_functions_only():
    with pytest.raises(TypeError, match="decorates functions, not type"):
        tool(Empty)
