"""A secret that is kept in a session appears where it is kept, and nowhere else (case 41)."""

from __future__ import annotations

import base64
import contextlib
import inspect
import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_state
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from snakepit_kernel import CallTimeout, InvalidArguments, Pool, WorkerDied, telemetry
from snakepit_kernel.telemetry import events

PARTS = ["Open", "Sesame", "4711"]
"""The secret as arguments of calls and text of cells have it, which may be shown."""

SECRET = "".join(PARTS)

HOLDERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "list": lambda secret: [secret],
    "dict": lambda secret: {secret: secret},
    "bytes": str.encode,
    "array": lambda secret: np.array([secret]),
    "any": lambda secret: (secret,),
}
"""How each type holds a secret. Numbers, booleans and vectors cannot; choices are told to all."""

DEBUGGING = """
import logging
logging.basicConfig(level=logging.DEBUG, force=True)
logging.getLogger().setLevel(logging.DEBUG)
"""


class Everything:
    """All that is said in this process, and to it."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.said: list[str] = []
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()

    def hear(self, what: object) -> None:
        self.said.append(repr(what))

    def hear_of(self, error: BaseException) -> None:
        """Note an error, its causes, and all that is shown of it."""
        self.said += traceback.format_exception(error)
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            self.said += [str(error), repr(error), repr(getattr(error, "remote_traceback", ""))]
            self.said.append(repr(vars(error)))
            error = error.__cause__ or error.__context__

    def texts(self) -> str:
        assert telemetry.flush(10)
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        data = self.reader.get_metrics_data()
        return "\n".join([self.log.getvalue(), *self.said, *spans, data.to_json() if data else ""])


@pytest.fixture
def everything(monkeypatch) -> Iterator[Everything]:
    """Listen to all: logs at DEBUG, events, spans, metrics."""
    heard = Everything()
    handler = logging.StreamHandler(heard.log)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    monkeypatch.setattr(events, "_hub", events.Hub())
    for state, once, name in (
        (trace, "_TRACER_PROVIDER_SET_ONCE", "_TRACER_PROVIDER"),
        (metrics_state, "_METER_PROVIDER_SET_ONCE", "_METER_PROVIDER"),
    ):
        monkeypatch.setattr(state, name, None)
        monkeypatch.setattr(getattr(state, once), "_done", False)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(heard.exporter))
    meters = MeterProvider([heard.reader], shutdown_on_exit=False)
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    with telemetry.subscribe(heard.hear):
        yield heard
    telemetry.flush(10)
    tracers.shutdown()
    meters.shutdown()
    root.removeHandler(handler)
    root.setLevel(level)


class Unpicklable:
    """What holds a secret and a lock."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.lock = threading.Lock()


FAILURES: dict[str, Callable[[Any, str], Any]] = {
    "type": lambda c, s: c.variables.update(number=s),
    "type, in a list": lambda c, s: c.variables.update(embedding=[s]),
    "type of a new one": lambda c, s: c.variables.register("new", "integer", s),
    "choice": lambda c, s: c.variables.update(colour=s),
    "pattern": lambda c, s: c.variables.update(word=s),
    "length": lambda c, s: c.variables.update(short=s),
    "lock": lambda c, s: c.variables.update(locked=s),
    "version": lambda c, s: c.variables.set("string", s, version=99),
    "no variable": lambda c, s: c.variables.update(none=s),
    "batch": lambda c, s: c.variables.set_many({"number": s, "none": s, "colour": s}),
    "batch, one by one": lambda c, s: c.variables.set_many(
        {"number": s, "string": s, "locked": s}, atomic=False
    ),
    "new ones": lambda c, s: c.variables.register_many({"n": ("integer", s), "m": ("list", s)}),
    "size": lambda c, s: c.variables.update(any=s * 200_000),
    "size of a note": lambda c, s: c.metadata.update(note=s * 200_000),
    "unpicklable": lambda c, s: c.variables.update(any=Unpicklable(s)),
    "unpicklable program": lambda c, s: c.programs.update(model=Unpicklable(s)),
    "unpicklable note": lambda c, s: c.metadata.update(note=Unpicklable(s)),
    "unpicklable batch": lambda c, s: c.variables.set_many({"any": Unpicklable(s)}),
    "metadata of a variable": lambda c, s: c.variables.register(
        "new", "string", s, metadata={"a": Unpicklable(s)}
    ),
    "metadata of a program": lambda c, s: c.programs.put("model", s, metadata={"a": object()}),
    "bad rollback": lambda c, s: c.variables.rollback("string", 99),
    "other definition": lambda c, s: c.variables.register("string", "bytes", s.encode()),
}


def prepare(session: Any) -> None:
    for kind, make in HOLDERS.items():
        session.variables.register(kind, kind, make(SECRET), metadata={"key": SECRET})
    session.variables.register("number", "integer", 1)
    session.variables.register("embedding", "embedding", [1.0])
    session.variables.register("colour", "choice", "red", choices=["red"])
    session.variables.register("word", "string", "word", pattern="[a-z]{1,5}")
    session.variables.register("short", "string", "a", max_length=2)
    session.variables.register("locked", "string", SECRET)
    session.variables.lock("locked")
    session.programs.put("model", {"key": SECRET}, metadata={"key": SECRET})
    session.programs["large"] = [SECRET] * 100_000
    session.metadata["key"] = SECRET


def read_all(context: Any) -> int:
    values = [context.variables[name] for name in context.variables]
    values += [dict(context.programs), dict(context.metadata), context.variables.list()]
    values += [context.variables.history("string"), context.variables.get_many(["any", "none"])]
    return len(values)


def refresh(context: Any) -> list[str]:
    """Give what is shown of objects that hold a secret."""
    return [
        *map(repr, context.variables.list()),
        *map(repr, context.variables.history("string")),
        *map(repr, context.programs.list()),
        *(repr(each) for each in (context.variables, context.programs, context.metadata)),
    ]


def fail_in_worker(name: str, secret: str) -> list[str]:
    """Do in a worker what fails; return all that could be seen of that."""
    import snakepit_kernel

    try:
        FAILURES[name](snakepit_kernel.context(), secret)
    except Exception as error:
        shown = [str(error), repr(error), *map(str, getattr(error, "errors", {}).values())]
        return [*shown, *traceback.format_exception(error)]
    return []


def fail_and_let_go(name: str, secret_parts: list[str]) -> None:
    import snakepit_kernel

    FAILURES[name](snakepit_kernel.context(), "".join(secret_parts))


for _item in (
    *(Unpicklable, *filter(inspect.isfunction, vars(Unpicklable).values())),
    *(prepare, read_all, refresh, fail_in_worker, fail_and_let_go, *FAILURES.values()),
):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


def holders_of(secret: str, *folders: Path) -> list[Path]:
    """Return the files below some folders that hold a secret in some form."""
    forms = [secret.encode(), secret.encode("utf-16-le"), secret.encode("utf-32-le")]
    forms.append(base64.b64encode(secret.encode()).rstrip(b"="))
    found = []
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                with contextlib.suppress(OSError):
                    if path.is_file() and any(form in path.read_bytes() for form in forms):
                        found.append(path)
    return found


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    """Folders for all that is written while the secret is used, each of them new."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    for folder in (work, temporary):
        folder.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    names = ("JUPYTER_RUNTIME_DIR", "SNAKEPIT_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    return [work, temporary, *(Path(os.environ[name]) for name in names)]


@pytest.fixture
def session(places, open_pools, tmp_path) -> Any:
    store = tmp_path / "store" / "sessions.sqlite"
    pool = open_pools(store=store)
    pool.run_all(DEBUGGING)
    return pool.session("s")


@pytest.fixture
def open_pools() -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def start(**options: Any) -> Pool:
        pools.append(Pool(1, grace=0.3, **options))
        return pools[-1]

    yield start
    for pool in pools:
        pool.terminate()


def check(everything: Everything, session: Any, places: list[Path], store: Path) -> None:
    """See that the secret is where it is kept, and in nothing else."""
    logs = session._pool.logs()
    assert logs
    everything.said += logs.values()
    said = everything.texts()
    assert SECRET not in said, said[max(0, said.index(SECRET) - 500) :][:1000]
    assert len(said) > 1000, "somebody has listened"
    own = Path(os.environ["SNAKEPIT_DATA_DIR"])
    files = holders_of(SECRET, *places, own, store.parent)
    outside = [path for path in files if path.parent.parent != store.parent != path.parent]
    assert outside == []
    assert any(path.name.startswith("sessions.sqlite") for path in files), "it is in the store"


def test_a_secret_appears_in_nothing_that_is_said_or_written_however_its_use_fails(
    everything, session, places, tmp_path
):
    prepare(session)
    read_all(session)
    session.submit(lambda: read_all(__import__("snakepit_kernel").context())).result()
    everything.said += refresh(session)
    everything.said += session.submit(
        lambda: refresh(__import__("snakepit_kernel").context())
    ).result()

    silent = set()
    for name, fail in FAILURES.items():
        try:
            fail(session, SECRET)
        except Exception as error:
            everything.hear_of(error)
        else:
            silent.add(name)
        shown = session.submit(lambda n=name: fail_in_worker(n, "".join(PARTS))).result()
        assert bool(shown) == (name not in silent), name
        everything.said += shown
        try:
            session.submit(fail_and_let_go, name, PARTS).result()
        except Exception as error:
            everything.hear_of(error)

    assert silent == {"batch, one by one"}
    everything.said += [repr(v) for v in session.variables.list()]
    check(everything, session, places, tmp_path / "store" / "sessions.sqlite")


def test_a_secret_that_is_set_in_a_cell_or_by_a_tool_that_fails_stays_where_it_is(
    everything, session, places, tmp_path
):
    prepare(session)
    session.push({"parts": PARTS, "fail_and_let_go": fail_and_let_go})
    for name in FAILURES:
        shown: list[Any] = []
        result = session.run(f"fail_and_let_go({name!r}, parts)", on_message=shown.append)
        if result.error is not None:
            everything.hear_of(result.error)
            everything.said += result.error.traceback
        everything.said += map(repr, shown)

    check(everything, session, places, tmp_path / "store" / "sessions.sqlite")


def test_a_secret_does_not_appear_when_its_worker_dies_or_is_given_up(
    everything, session, places, tmp_path
):
    prepare(session)

    def die() -> None:
        here = __import__("snakepit_kernel").context()
        here.variables["string"] = here.variables["string"] * 2
        os.kill(os.getpid(), signal.SIGSEGV)

    def stay() -> None:
        here = __import__("snakepit_kernel").context()
        kept = here.variables["string"], here.programs["large"]
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        time.sleep(len(kept) * 10)

    for work in (die, stay):
        session._pool.tool(work)
        with pytest.raises((WorkerDied, CallTimeout)) as caught:
            session.call(work.__name__, timeout=3 if work is die else 0.5)
        everything.hear_of(caught.value)

    check(everything, session, places, tmp_path / "store" / "sessions.sqlite")


def test_a_secret_does_not_appear_when_the_store_fails(everything, session, places, tmp_path):
    import resource

    prepare(session)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = tmp_path / "store" / "sessions.sqlite"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # nothing can grow any more
    try:
        for attempt in (
            lambda: session.variables.update(string=SECRET * 10_000),
            lambda: session.programs.update(large=[SECRET] * 100_000),
            lambda: session.metadata.update(key=SECRET * 10_000),
            lambda: session.submit(
                lambda: (
                    __import__("snakepit_kernel")
                    .context()
                    .variables.update(string="".join(PARTS) * 10_000)
                )
            ).result(),
        ):
            with pytest.raises(Exception, match="the store of sessions") as caught:
                attempt()
            everything.hear_of(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    check(everything, session, places, store)
    with sqlite3.connect(store) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def command_lines() -> str:
    """Return the command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    return b"\n".join(lines).decode("latin-1")


def test_an_argument_of_a_call_is_in_no_event_log_status_or_command_line(
    everything, session, places
):
    pool = session._pool

    def take(secret: str, count: int = 0) -> int:
        return len(secret) + count

    def wait(secret: str) -> int:
        import snakepit_kernel

        snakepit_kernel.context().host_tools.look()
        return len(secret)

    def look() -> None:
        seen.append(command_lines())
        seen.extend(path.read_text() for path in places[3].glob("*/*/pool.json"))
        seen.append(json.dumps(pool.status().as_json()) + str(pool.status()))
        seen.append(pool.status()._repr_html_() + pool.prometheus())
        status = [sys.executable, "-m", "snakepit_kernel", "status", "--json"]
        seen.append(subprocess.run(status, capture_output=True, text=True, check=True).stdout)

    for each in (take, wait):
        each.__module__ = "__main__"
        pool.tool(each)
    pool.host_tool(look)
    seen: list[str] = []
    with pool.timeline() as timeline:
        assert session.call("take", {"secret": SECRET}) == len(SECRET)
        assert session.call("wait", {"secret": SECRET}) == len(SECRET)
        assert session.submit(len, SECRET).result() == len(SECRET)
        for wrong in ({"secret": SECRET, "count": SECRET}, {"secret": SECRET, "more": SECRET}):
            with pytest.raises(InvalidArguments) as caught:
                session.call("take", wrong)
            everything.hear_of(caught.value)
    everything.said += [repr(timeline), timeline._repr_html_(), *seen, *pool.logs().values()]

    said = everything.texts()
    assert SECRET not in said, said[max(0, said.index(SECRET) - 500) :][:1000]
    assert '"running": "wait"' in said
    assert said.count('"owner_pid"') >= 3  # pool.json, the status, what the command says of it
    assert holders_of(SECRET, *places, Path(os.environ["SNAKEPIT_DATA_DIR"])) == []


def test_the_key_of_a_kernel_is_on_no_command_line_and_in_one_private_file(session, places):
    files = [path for path in places[3].rglob("*.json") if path.name != "pool.json"]
    keys = {json.loads(path.read_text())["key"]: path for path in files}

    assert keys
    for key, path in keys.items():
        assert len(key) > 30
        assert key not in command_lines()
        assert holders_of(key, *places) == [path]
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("form", ["plain", "utf-16", "base64"])
def test_a_secret_in_a_file_is_found(tmp_path, form):
    content = {
        "plain": SECRET.encode(),
        "utf-16": SECRET.encode("utf-16-le"),
        "base64": base64.b64encode(SECRET.encode()),
    }[form]
    (tmp_path / "file").write_bytes(b"\0" * 100 + content)

    assert holders_of(SECRET, tmp_path) == [tmp_path / "file"]
