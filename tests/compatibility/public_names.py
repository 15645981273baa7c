"""Write down what users hold on to: names, signatures, commands, options, titles, events.

Renew the snapshot, after a look at what has changed::

    python tests/compatibility/public_names.py > tests/fixtures/public_names.txt

Everything is found as users find it, by the public package, entry points, the kernelspec and a pool
that works; nothing here knows where a module lies. Annotations are as in the source, but for names
that only the package itself knows: those are ``?``, because they may change.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import collections.abc
import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

# Read when a library is imported, or a pool opened: a snapshot must not depend on who takes it.
for variable in list(os.environ):
    if variable.startswith(("SNAKEPIT_", "OTEL_")) and not variable.endswith("_DIR"):
        del os.environ[variable]
_private = tempfile.TemporaryDirectory(prefix="spt-", dir="/tmp")
for variable in ("SNAKEPIT_DATA_DIR", "SNAKEPIT_RUNTIME_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
    os.environ[variable] = f"{_private.name}/{variable.lower()}"
    Path(os.environ[variable]).mkdir(mode=0o700)
os.environ["SNAKEPIT_STANDBY"] = "0"
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"

import click  # noqa: E402
import psutil  # noqa: E402
from IPython.core.history import HistoryManager  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import KernelManager  # noqa: E402
from traitlets import HasTraits  # noqa: E402

import snakepit_kernel  # noqa: E402
from snakepit_kernel import telemetry  # noqa: E402

PACKAGE = "snakepit_kernel"

SPECIAL = (
    *("__call__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__iter__", "__next__"),
    *("__aiter__", "__anext__", "__getitem__", "__setitem__", "__delitem__", "__contains__"),
    *("__len__", "__getattr__", "__setattr__", "__delattr__", "__dir__", "__bool__", "__fspath__"),
    *("_repr_html_", "_repr_mimebundle_", "_ipython_display_", "_ipython_key_completions_"),
    *("_render_traceback_",),
)
"""Methods that others call by their names: Python, IPython."""

OUR_OWN = {
    "Limits": {"controllers", "of_process", "why_ended"},
    "Session": {"state"},
    "SessionState": {
        *("number", "owned_by", "refresh", "remember_host_tools", "serve", "shells", "store"),
    },
    "PoolStatus": {"beside_workers", "table"},
    "WorkerStatus": {"cells", "since"},
    "Process": {"as_row", "is_here", "record"},
    "Shell": {"settled"},
    "CallFuture": {
        "begin",
        "call",
        "deliver",
        "deliver_unnoticed",
        "keeper",
        "wait_again",
    },
    "telemetry.Subscription": {"take"},
    "pool.tools[NAME]": {"checks"},
}
"""Members without an underscore that no documentation names: other modules of ours use them."""

KNOWN = {
    *snakepit_kernel.__all__,
    *telemetry.__all__,
    *dir(builtins),
    *dir(typing),
    *dir(collections.abc),
    *("Path", "PathLike", "datetime", "Future", "ModuleType", "TracebackType"),
}
"""Names in annotations that mean the same to everybody."""


# -- signatures --------------------------------------------------------------------------------


def shown(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    name_of = r"(?<![\w.'\"])[A-Z]\w+(?:\.\w+)*"  # of a class; one letter stands for any type
    return re.sub(name_of, lambda m: m[0] if m[0].rpartition(".")[2] in KNOWN else "?", text)


def default_of(value: object) -> str:
    return re.sub(r"<(?:\w+\.)*(\w+) object at 0x\w+>", r"<\1>", repr(value))


def signature_of(function: Callable[..., object], *, is_bound: bool) -> str:
    """Write a signature; the same on each version of Python."""
    signature = inspect.signature(function)
    words: list[str] = []
    last = None
    for item in list(signature.parameters.values())[is_bound:]:
        if last is item.POSITIONAL_ONLY and item.kind is not last:
            words.append("/")
        if item.kind is item.KEYWORD_ONLY and last not in {item.KEYWORD_ONLY, item.VAR_POSITIONAL}:
            words.append("*")
        last = item.kind
        stars = {item.VAR_POSITIONAL: "*", item.VAR_KEYWORD: "**"}.get(item.kind, "")
        word = stars + item.name
        if item.annotation is not item.empty:
            word += f": {shown(item.annotation)}"
        if item.default is not item.empty:
            word += f" = {default_of(item.default)}"
        words.append(word)
    if last is inspect.Parameter.POSITIONAL_ONLY:
        words.append("/")
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {shown(returned)}"
    return f"({', '.join(words)}){arrow}"


# -- classes -----------------------------------------------------------------------------------


def is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] in {PACKAGE, "snakepit_magics"}


def defined(kind: type) -> dict[str, object]:
    """What our classes define, bases of ours included, wherever they stand."""
    found: dict[str, object] = {}
    for base in kind.__mro__:
        if is_ours(base):
            found = {**vars(base), **found}
    return found


def bases_of(kind: type) -> str:
    """Public bases, of ours and of the standard library."""
    return ", ".join(
        base.__name__ if is_ours(base) else f"{base.__module__}.{base.__name__}"
        for base in kind.__mro__[1:-1]
        if (base.__name__ in snakepit_kernel.__all__ and is_ours(base))
        or (base.__module__.split(".")[0] in sys.stdlib_module_names and base is not typing.Generic)
    ).replace("builtins.", "")


def describe_class(name: str, kind: type) -> Iterator[str]:
    """Tell of a class and of its public members."""
    members = defined(kind)
    is_data, is_error = dataclasses.is_dataclass(kind), issubclass(kind, Exception)
    facts = [f"class {name}"]
    if "__init__" in members and (is_data or is_error or kind is snakepit_kernel.Pool):
        facts[0] += signature_of(kind.__init__, is_bound=True).removesuffix(" -> None")
    if bases := bases_of(kind):
        facts.append(f"bases: {bases}")
    if is_data:
        facts.append("frozen dataclass" if kind.__dataclass_params__.frozen else "dataclass")
    yield "; ".join(facts)
    fields = {field.name for field in dataclasses.fields(kind)} if is_data else set()
    generated = {"__setattr__", "__delattr__"} if is_data else set()
    hidden = fields | generated | OUR_OWN.get(name, set())
    if is_error and kind is not snakepit_kernel.SnakepitError:
        hidden |= set(vars(snakepit_kernel.SnakepitError))
    yield from (f"    field {field}" for field in sorted(fields))
    for member, value in sorted(members.items()):
        if member not in hidden and (not member.startswith("_") or member in SPECIAL):
            yield f"    {describe_member(member, value)}"
    if is_error:
        for attribute, value in sorted(instance_fields(kind).items()):
            yield f"    attribute {attribute} = {value!r}"


def describe_member(name: str, value: object) -> str:
    if name in SPECIAL:
        return f"special {name}"
    if isinstance(value, property):
        returned = value.fget.__annotations__.get("return") if value.fget else None
        setter = "" if value.fset is None else ", can be set"
        return f"property {name}: {shown(returned)}{setter}"
    if isinstance(value, types.FunctionType):
        word = "async def" if inspect.iscoroutinefunction(value) else "def"
        return f"{word} {name}{signature_of(value, is_bound=True)}"
    if isinstance(value, classmethod | staticmethod):
        bound = isinstance(value, classmethod)
        signature = signature_of(value.__func__, is_bound=bound)
        return f"{type(value).__name__} {name}{signature}"
    return f"attribute {name}"


def instance_fields(kind: type[Exception]) -> dict[str, object]:
    """Make an error of plain arguments, named after its parameters; give its public fields."""
    arguments: dict[str, object] = {}
    if "__init__" in defined(kind):
        for item in list(inspect.signature(kind.__init__).parameters.values())[1:]:
            arguments[item.name] = sample_of(item.name, str(item.annotation))
    error = kind(**arguments)
    fields = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    return {**fields, "args": error.args}


def sample_of(name: str, annotation: str) -> object:
    if "Mapping" in annotation:
        return {name: ValueError(name)}
    if "Sequence" in annotation:
        return [name]
    for kind, value in (("bool", True), ("int", 7), ("float", 1.5)):
        if annotation.split(" ", maxsplit=1)[0] == kind:
            return value
    return name


# -- sections ----------------------------------------------------------------------------------


def names() -> Iterator[str]:
    """Tell of the names of the package, and of those of its telemetry."""
    for prefix, module in (("", snakepit_kernel), ("telemetry.", telemetry)):
        for name in sorted(module.__all__):
            yield from describe(prefix + name, getattr(module, name))


def describe(name: str, value: object) -> Iterator[str]:
    if isinstance(value, type):
        yield from describe_class(name, value)
    elif isinstance(value, types.FunctionType):
        yield f"def {name}{signature_of(value, is_bound=False)}"
    elif isinstance(value, types.ModuleType):
        yield f"module {name} is {value.__name__}"
    else:
        yield f"{type(value).__name__} {name}"


def held(pool: snakepit_kernel.Pool) -> Iterator[str]:
    """Tell of objects that users hold and whose classes have no public name."""
    session = pool.session("held")
    session.variables.register("x", "integer", 1)
    session.programs["p"] = 1
    state = snakepit_kernel.open_session("held")
    found: dict[str, object] = {
        "pool.tools": pool.tools,
        "pool.tools[NAME]": pool.tools["nothing"],
        "pool.dashboard()": pool.dashboard(),
        "pool.timeline()": pool.timeline(),
        "session.variables": session.variables,
        "session.v": session.v,
        "session.programs": session.programs,
        "session.metadata": session.metadata,
        "session.variables.get_many()": state.variables.get_many(["x"]),
        "session.variables.set_many()": state.variables.set_many({"x": 1}),
        "pool.stream()": pool.stream("count", {"n": 1}),
    }
    for label, value in found.items():
        yield from describe_class(label, type(value))
    for label, value in {
        "Pool": pool,
        "Session": session,
        "SessionState": state,
        "CallFuture": pool.submit(abs, 1),
    }.items():
        hidden = OUR_OWN.get(label, set())
        own = sorted(n for n in vars(value) if not n.startswith("_") and n not in hidden)
        yield f"fields of a {label}: {', '.join(own)}"
    yield from pool.submit(parts_of_a_context).result()


def parts_of_a_context() -> list[str]:
    """Tell, in a worker, what a tool finds in its context."""
    import snakepit_kernel

    with snakepit_kernel.context() as here:
        parts = {
            "context()": here,
            "context().variables": here.variables,
            "context().programs": here.programs,
            "context().metadata": here.metadata,
        }
        names = {
            label: sorted(name for name in dir(part) if not name.startswith("_"))
            for label, part in parts.items()
        }
    names["context().variables"].remove("invalidate")  # our own: no documentation names it
    return [f"{label} in a worker: {', '.join(found)}" for label, found in names.items()]


def commands() -> Iterator[str]:
    """Tell of the console commands, their options and arguments."""
    group = _run_captured(click.Group, "main", console_script)
    for name, command in sorted(group.commands.items()):
        yield f"snakepit {name}"
        for item in command.params:
            kind = f"{item.param_type_name} {'/'.join((*item.opts, *item.secondary_opts))}"
            flags = [word for word in ("is_flag", "required", "multiple") if getattr(item, word, 0)]
            has_default = isinstance(item.default, float | str)  # what was not given has a mark
            default = f" = {item.default}" if has_default else ""
            yield f"    {kind}: {item.type.name}{default} {' '.join(flags)}".rstrip()


def console_script() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="snakepit")
    sys.argv = ["snakepit", "status"]
    entry.load()()


def magics() -> Iterator[str]:
    """Tell of the magics, their commands and options."""
    HistoryManager.enabled = False
    shell = InteractiveShell.instance()
    before = {kind: set(found) for kind, found in shell.magics_manager.magics.items()}
    shell.run_line_magic("load_ext", PACKAGE)
    for kind, found in sorted(shell.magics_manager.magics.items()):
        for name in sorted(set(found) - before[kind]):
            yield f"{kind} magic {name}"

    def line() -> None:
        shell.run_line_magic("snakepit", "status")

    def cell() -> None:
        shell.run_cell_magic("snakepit", "", "1")

    parser = _run_captured(argparse.ArgumentParser, "parse_known_args", line)
    (commands,) = (a for a in parser._actions if isinstance(a.choices, dict))
    for name, command in sorted(commands.choices.items()):
        yield f"%snakepit {name}"
        yield from options_of(command)
    yield "%%snakepit"
    yield from options_of(_run_captured(argparse.ArgumentParser, "parse_known_args", cell))


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        facts = (
            [
                f"nargs={action.nargs!r}" if action.nargs is not None else "",
                f"default={action.default!r}" if action.default not in {None, False} else "",
                f"choices={sorted(action.choices)}" if action.choices is not None else "",
            ]
            if not isinstance(action.default, list)
            else [f"nargs={action.nargs!r}"]
        )
        name = "/".join(action.option_strings) or action.dest
        yield f"    {name} {' '.join(filter(None, facts))}".rstrip()


class _Captured(BaseException):
    """Carries out of a command what it was about to use."""


def _run_captured(kind: type, method: str, run: Callable[[], object]) -> typing.Any:
    """Run what calls a method of an object of a library, and give that object."""

    def capture(self: object, *_: object, **__: object) -> None:
        raise _Captured(self)

    try:
        with mock.patch.object(kind, method, capture):
            run()
    except _Captured as caught:
        return caught.args[0]
    msg = f"{kind.__name__}.{method} was not called"
    raise AssertionError(msg)


def environment() -> Iterator[str]:
    """Tell of the environment variables that the code names, comments and docstrings apart."""
    found = set()
    for module in sources():
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if re.fullmatch(r"SNAKEPIT_[A-Z_]+", node.value) else set()
    yield from sorted(found)


def sources() -> list[Path]:
    packages = (snakepit_kernel, importlib.import_module("snakepit_magics"))
    return [path for each in packages for path in sorted(Path(each.__file__).parent.rglob("*.py"))]


def installation() -> Iterator[str]:
    """Tell of entry points, kernelspec, and what can be configured."""
    for entry in sorted(importlib.metadata.distribution("snakepit-kernel").entry_points):
        yield f"entry point {entry.group}: {entry.name} = {entry.value}"
    spec = KernelSpecManager().get_kernel_spec("snakepit").to_dict()
    spec["argv"][0] = Path(spec["argv"][0]).name.rstrip("0123456789.")
    for key, value in sorted(spec.items()):
        yield f"kernelspec {key} = {json.dumps(value, sort_keys=True)}"
    (entry,) = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners").select(
        name="snakepit-provisioner"
    )
    yield from traits_of(entry.load())


def traits_of(kind: type[HasTraits]) -> Iterator[str]:
    traits, made = kind.class_own_traits(config=True), kind()
    with mock.patch.dict(os.environ):
        del os.environ["SNAKEPIT_STANDBY"]
        defaults = {name: getattr(made, name) for name in traits}
    for name, trait in sorted(traits.items()):
        default = defaults[name]
        default = str(default) if isinstance(default, str) else default
        values = [str(value) for value in getattr(trait, "values", None) or ()]
        text = f"trait {kind.__name__}.{name}: {type(trait).__name__} = {default!r}"
        yield f"{text}, of {values}" if values else text


def titles() -> Iterator[str]:
    """Tell how the process list names our processes: a pool's, and those of a notebook's kernel."""
    manager = KernelManager(kernel_name="snakepit")
    manager.start_kernel()
    try:
        found = {normal(process) for process in psutil.Process().children(recursive=True)}
    finally:
        manager.shutdown_kernel(now=True)
    yield from sorted(found)


def normal(process: psutil.Process) -> str:
    """Give a process's title without what differs from one start to the next."""
    text = " ".join(word for word in process.cmdline() if word)
    text = re.sub(r"\S*/python[\d.]*", "PYTHON", text)
    text = re.sub(r"/\S+", "PATH", text)
    text = re.sub(r"(-id=)\w+", r"\1ID", text)
    text = re.sub(r"\.{4,}", "...", text)
    return f"{re.sub(r'python[0-9.]*', 'python', process.name())}: {re.sub(r'[0-9]+', 'N', text)}"


def events(pool: snakepit_kernel.Pool) -> Iterator[str]:
    """Tell of the events of all kinds of work, with their attributes."""
    found: dict[str, set[str]] = {}

    def take(event: telemetry.Event) -> None:
        kind = event.attributes.get("kind")
        name = f"{event.name} ({kind})" if kind else event.name
        found.setdefault(name, set()).update(event.attributes)

    with telemetry.subscribe(take):
        session = pool.session("events")
        session.call("ask")
        session.submit(abs, 1).result()
        session.run("1")
        list(session.stream("count", {"n": 2}))
        variables = session.variables
        variables.register("x", "integer", 1, max=5)
        variables["x"] = 2
        variables["x"]
        variables.get_many(["x"])
        variables.set_many({"x": 3})
        for wrong in ("text", 9):
            try:
                variables["x"] = wrong
            except ValueError:
                pass
        variables.rollback("x", 1)
        variables.lock("x")
        variables.unlock("x")
        del variables["x"]
        telemetry.flush()
    for name, attributes in sorted(found.items()):
        yield f"{name}: {', '.join(sorted(attributes))}"


def metrics(pool: snakepit_kernel.Pool) -> Iterator[str]:
    """Tell of the names and labels for Prometheus, and of the keys of a status as JSON."""
    names = re.findall(r"^(\w+(?:\{[^}]*\})?) ", pool.prometheus(), re.MULTILINE)
    yield from sorted({re.sub(r'="[^"]*"', "", name) for name in names})
    status = pool.status().as_json()
    yield f"status as JSON: {', '.join(sorted(status))}"
    yield f"worker as JSON: {', '.join(sorted(status['workers'][0]))}"
    yield f"stats as JSON: {', '.join(sorted(status['stats']))}"


def open_pool() -> snakepit_kernel.Pool:
    pool = snakepit_kernel.Pool(1, name="guarded")

    @pool.host_tool
    def answer() -> int:
        return 42

    def nothing(item: str = "tea", *, amount: int = 1) -> None:
        """Do nothing."""

    def count(n: int) -> Iterator[int]:
        yield from range(n)

    def ask() -> int:
        return snakepit_kernel.context().host_tools.answer()

    for function in (nothing, count, ask):
        pool.tool(function)
    return pool


def snapshot() -> Iterator[str]:
    """Give the lines of the whole snapshot."""
    sections: dict[str, Callable[[], Iterable[str]]] = {
        "Names": names,
        "Commands": commands,
        "Magics": magics,
        "Environment variables": environment,
        "Installation": installation,
    }
    for title, section in sections.items():
        yield from _section(title, section())
    with open_pool() as pool:
        pool.call("nothing")
        yield from _section("Events", events(pool))
        yield from _section("Objects that users hold", held(pool))
        yield from _section("Metrics", metrics(pool))
        yield from _section("Process titles", titles())


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"[{title}]"
    yield from lines
    yield ""


if __name__ == "__main__":
    sys.stdout.write("\n".join(snapshot()))
