"""The shell and the background processes of a session, as its workers use them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import snakepit_kernel
from snakepit_kernel import (
    Adapter,
    CallTimeout,
    CommandFailed,
    Pool,
    Process,
    ProcessExited,
    ProcessNotFound,
    ProcessNotReady,
    Session,
    ShellBusy,
    ShellClosed,
    ToolError,
    WorkerDied,
    telemetry,
    tool,
)
from snakepit_kernel.shells.manager import manager
from snakepit_kernel.tools.remote_shell import RemoteShell

Do = Callable[[Any], Any]

SOON = 5.0
"""Seconds in which something that is to end must have ended."""


class Desk(Adapter):
    """Its tools do what they are told, with the context of the call."""

    thread_safe = True

    @tool
    def do(self, what) -> Any:
        return what(self.context)

    @tool
    async def ado(self, what) -> Any:
        return await what(self.context)


for _item in (Desk, *filter(inspect.isfunction, vars(Desk).values())):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


def _in_context(what: Do) -> Any:
    return what(snakepit_kernel.context())


_in_context.__module__ = "__main__"


def by_cell(session: Session, what: Do) -> Any:
    session.push({"what": what})
    code = "import snakepit_kernel; what(snakepit_kernel.context())"
    result = session.run(code, on_message=lambda _: None)
    if result.error is not None:
        raise result.error
    return result.value


WAYS: dict[str, Callable[[Session, Do], Any]] = {
    "call": lambda session, what: session.call("do", {"what": what}, timeout=30),
    "acall": lambda session, what: asyncio.run(session.acall("do", {"what": what}, timeout=30)),
    "cell": by_cell,
    "future": lambda session, what: session.submit(_in_context, what).result(30),
}


@pytest.fixture(scope="module", params=["process", "thread"])
def opened(
    open_for_all: Callable[..., Pool],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pool:
    options = {"threads_per_worker": 2} if request.param == "thread" else {}
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    pool = open_for_all(adapter=Desk, profile=request.param, name="shells", store=store, **options)
    session = pool.session("first")
    # As many connections as tests use at a time: they stay open with the pool.
    table = session.state.store._database
    with ThreadPoolExecutor(4) as threads:
        barrier = threading.Barrier(4)
        list(threads.map(lambda _: (barrier.wait(), table._idle.append(table._connect())), "1234"))
    session.delete()
    return pool


@pytest.fixture(autouse=True)
def _end_shells() -> Iterator[None]:
    """End the thread of the shells with the test, and forget the processes that have ended."""
    yield
    manager.close()


@pytest.fixture
def session(opened: Pool, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session, of a pool of either profile, whose processes end with the test."""
    opened_one = opened.session(f"s{abs(hash(request.node.nodeid))}")
    yield opened_one
    opened_one.delete()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Session, Do], Any]:
    return WAYS[request.param]


@pytest.fixture
def alone(open_pool: Callable[..., Pool], tmp_path: Path) -> Pool:
    """A pool of its own, for tests that end its worker."""
    return open_pool(adapter=Desk, store=tmp_path / "sessions.sqlite", grace=0.5)


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells this process of."""
    until = time.monotonic() + SOON
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pid_in(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


# -- commands --------------------------------------------------------------------------------------


def test_a_worker_has_the_shell_of_its_session_whatever_runs_there(session, way, tmp_path):
    session.shell.run(f"cd {tmp_path}; x=mine; greet() {{ echo hello $x; }}")

    def work(context: Any) -> tuple[str, int, bytes, str, str]:
        result = context.shell.run("greet; echo e >&2; y=theirs; cd /; (exit 3)")
        return (
            result.stdout,
            result.returncode,
            result.stderr_bytes,
            context.shell.cwd,
            context.shell.last.stdout,
        )

    assert way(session, work) == ("hello mine\n", 3, b"e\n", "/", "hello mine\n")
    assert session.shell.run("echo $y; pwd").stdout == "theirs\n/\n"


def test_options_of_a_command_are_those_of_the_owner(session, tmp_path):
    (tmp_path / "input").write_bytes(b"from a file\xff")
    here, text = str(tmp_path), b"a" * 10

    def work(context: Any) -> list[Any]:
        import os
        import pathlib

        os.chdir(here)
        pathlib.Path("sub").mkdir()
        shell = context.shell
        with open("input", "rb") as file:
            read = shell.run("cat", stdin=file).stdout_bytes
        return [
            read,
            shell.run("cat", stdin="text").stdout,
            shell.run("echo $K; pwd", env={"K": "v"}, cwd="sub").stdout,
            shell.run("pwd", cwd=pathlib.Path("sub")).stdout,
            shell.run("cat", stdin=text, max_output=4).stdout_total,
            shell.run("sleep 60", timeout=0.1).timed_out,
            shell.run("cat; echo x", spool=True, stdin=text).spool.read_bytes(),
        ]

    assert session.call("do", {"what": work}) == [
        b"from a file\xff",
        "text",
        f"v\n{here}/sub\n",
        f"{here}/sub\n",
        10,
        True,
        b"aaaaaaaaaax\n",
    ]


def test_an_async_tool_runs_commands_and_takes_their_chunks_while_its_loop_goes_on(
    session, tmp_path
):
    """Only its loop, which goes on, lets the commands go on."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    async def work(context: Any) -> tuple[Any, ...]:
        import asyncio

        async def let_go_on() -> None:
            while not context.shell.is_busy:
                await asyncio.sleep(0.01)
            with open(fifo, "w") as going_on:
                going_on.write("\n")

        letting = asyncio.create_task(let_go_on())
        result = await context.shell.arun(f"read x <{fifo}; echo done")
        await letting
        seen = []
        async for chunk in context.shell.astream(f"echo a; read x <{fifo}; echo b >&2"):
            if not seen:
                await let_go_on()
            seen.append((chunk.stream, chunk.data))
        return result.stdout, seen

    expected = ("done\n", [("stdout", b"a\n"), ("stderr", b"b\n")])
    assert session.call("ado", {"what": work}, timeout=30) == expected
    assert asyncio.run(session.acall("ado", {"what": work}, timeout=30)) == expected


def test_a_command_of_a_worker_does_not_block_the_event_loop_of_the_caller(session, tmp_path):
    """Only that loop lets the command go on; the worker's code waits as in a thread."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def work(context: Any) -> str:
        return context.shell.run(f"read x <{fifo}; echo $x").stdout

    async def main() -> str:
        call = asyncio.create_task(session.acall("do", {"what": work}, timeout=30))
        while not session.shell.is_busy:
            await asyncio.sleep(0.01)
        Path(fifo).write_text("done\n")
        return await call

    assert asyncio.run(main()) == "done\n"


def test_chunks_come_as_they_are_written_and_state_stays(session, way, tmp_path):
    """The command goes on when the worker has seen what it wrote."""
    fifos = [str(tmp_path / f"fifo.{number}") for number in (1, 2, 3)]
    for fifo in fifos:
        os.mkfifo(fifo)

    def work(context: Any) -> tuple[Any, ...]:
        seen = []
        command = f"for i in {' '.join(fifos)}; do printf .; read x <$i; done; cd /usr; (exit 4)"
        for chunk in context.shell.stream(command):
            with open(fifos[len(seen)], "w") as going_on:
                going_on.write("\n")
            seen.append((chunk.stream, chunk.data))
        return seen, context.shell.last.returncode

    assert way(session, work) == ([("stdout", b".")] * 3, 4)
    assert session.shell.run("echo $i $PWD").stdout == f"{fifos[-1]} /usr\n"


def test_a_flood_arrives_whole_and_in_order(session):
    def work(context: Any) -> tuple[int, int]:
        import hashlib

        digest, count = hashlib.sha256(), 0
        for chunk in context.shell.stream("seq 1000000"):
            digest.update(chunk.data)
            count += 1
        return digest.hexdigest(), count

    digest, count = session.call("do", {"what": work})

    assert digest == session.shell.run("seq 1000000 | sha256sum").stdout.split()[0]
    assert count > 1


def test_the_environment_of_the_shell_is_what_it_exports(session):
    session.shell.run("export MINE='a\nb'; not_mine=1")

    there = session.call("do", {"what": lambda context: context.shell.env})

    assert there["MINE"] == "a\nb"
    assert "not_mine" not in there
    assert there == session.shell.env


def test_late_output_of_a_command_is_read_by_its_number(session):
    def work(context: Any) -> tuple[bool, bytes]:
        import time

        result = context.shell.run("(sleep 0.2; echo late) & echo first")
        until = time.monotonic() + 5
        while not (late := context.shell.late_output(result.number)):
            assert time.monotonic() < until
            time.sleep(0.02)
        return result.detached, late

    assert session.call("do", {"what": work}) == (True, b"late\n")


# -- errors ----------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[Do, type[Exception], str]] = {
    "check": (
        lambda c: c.shell.run("echo no >&2; exit 7", check=True),
        CommandFailed,
        "ended with status 7: echo no",
    ),
    "no such folder": (
        lambda c: c.shell.run("pwd", cwd="/nowhere"),
        NotADirectoryError,
        "cwd '/nowhere' is not a directory",
    ),
    "environment": (lambda c: c.shell.run("pwd", env={"A-B": "1"}), ValueError, "A-B"),
    "NUL": (lambda c: list(c.shell.stream("a\0b")), ValueError, "NUL"),
    "no text": (lambda c: c.shell.run(7), TypeError, "a command is text, not int"),
    "option": (lambda c: c.shell.run("pwd", timout=1), TypeError, "timout"),
    "what cannot be sent": (
        lambda c: c.shell.run("pwd", env={"A": __import__("threading").Lock()}),
        TypeError,
        "the session",
    ),
    "busy": (
        lambda c: [c.shell.run("pwd", queue=False) for _ in c.shell.stream("echo; sleep 60")],
        ShellBusy,
        "runs a command",
    ),
    "process": (lambda c: c.processes.get("nonesuch"), ProcessNotFound, "nonesuch"),
    "process name": (lambda c: c.processes.start("pwd", name="a b"), ValueError, "a b"),
    "not ready": (
        lambda c: c.processes.start("echo begun; sleep 60").wait_for_log("never", timeout=0.2),
        ProcessNotReady,
        "has not written 'never' within 0.2 s",
    ),
    "exited": (
        lambda c: c.processes.start("exit 3").wait_for_log("never"),
        ProcessExited,
        "ended with status 3",
    ),
}


@pytest.mark.parametrize(("work", "kind", "said"), ERRORS.values(), ids=ERRORS)
def test_a_worker_gets_the_error_itself_and_its_shell_works_on(session, work, kind, said):
    def caught(context: Any) -> tuple[str, str]:
        try:
            work(context)
        except Exception as error:
            return type(error), str(error)

    found, text = session.call("do", {"what": caught}, timeout=20)

    assert found is kind
    assert said in text
    with pytest.raises(ToolError) as raised:
        session.call("do", {"what": work}, timeout=20)
    assert isinstance(raised.value.__cause__, kind)
    assert session.shell.run("echo works").stdout == "works\n"


def test_an_error_that_fails_a_command_has_its_result(session):
    def work(context: Any) -> None:
        context.shell.run("echo out; echo err >&2; exit 9", check=True)

    with pytest.raises(CommandFailed) as raised:
        session.submit(_in_context, work).result()

    result = raised.value.result
    assert (result.returncode, result.stdout, result.stderr) == (9, "out\n", "err\n")


@pytest.mark.parametrize("part", ["shell", "processes"])
def test_work_of_no_session_has_no_shell_and_says_how_to_get_one(opened, part):
    use = {"shell": lambda c: c.shell.run("pwd"), "processes": lambda c: c.processes.list()}

    for anonymous in (
        lambda: opened.call("do", {"what": use[part]}),
        lambda: by_cell(opened, use[part]),
        lambda: opened.submit(_in_context, use[part]).result(),
    ):
        with pytest.raises((RuntimeError, ToolError), match=rf"has no {part}; make it by"):
            anonymous()


def test_a_shell_that_was_closed_meanwhile_is_said_to_be(session):
    def work(context: Any) -> None:
        context.shell.run("echo begun >&2; sleep 60")

    running = session.submit(_in_context, work)
    wait_until(lambda: session.shell.is_busy)
    session.shell.close()

    with pytest.raises(ShellClosed, match="it was closed"):
        running.result(SOON)


# -- the end of a command --------------------------------------------------------------------------


def test_leaving_the_generator_interrupts_the_command_before_the_worker_goes_on(session, way):
    def work(context: Any) -> tuple[str, bool, str]:
        chunks = context.shell.stream("x=kept; echo $$ $BASHPID; sleep 60 & wait; echo never")
        first = next(chunks).text
        chunks.close()
        return first, context.shell.is_busy, context.shell.run("echo $x").stdout

    began = time.monotonic()
    _, is_busy, state = way(session, work)

    assert time.monotonic() - began < SOON
    assert not is_busy
    assert state == "kept\n"


def test_leaving_an_async_generator_interrupts_the_command(session):
    async def work(context: Any) -> str:
        from contextlib import aclosing

        async with aclosing(context.shell.astream("x=kept; echo; sleep 60")) as chunks:
            async for _ in chunks:
                break
        return (await context.shell.arun("echo $x")).stdout

    assert session.call("ado", {"what": work}, timeout=SOON) == "kept\n"


def test_cancelling_a_task_of_an_async_tool_interrupts_its_command(session):
    async def work(context: Any) -> str:
        import asyncio

        task = asyncio.create_task(context.shell.arun("x=kept; sleep 60"))
        while not context.shell.is_busy:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return (await context.shell.arun("echo $x")).stdout

    assert session.call("ado", {"what": work}, timeout=SOON) == "kept\n"


def test_a_command_that_a_call_has_left_running_ends_with_the_call(session, way, tmp_path):
    file = tmp_path / "pid"

    def work(context: Any) -> None:
        import builtins

        command = f"x=kept; sleep 60 & echo $! >{file}; echo begun; wait"
        builtins.left = context.shell.stream(command)  # so that nothing closes the generator
        next(builtins.left)

    way(session, work)

    wait_until(lambda: not session.shell.is_busy)
    wait_until(lambda: not is_alive(pid_in(file)))
    assert session.shell.run("echo $x").stdout == "kept\n"

    def go_on(_: Any) -> None:
        import builtins

        list(builtins.left)

    with pytest.raises((RuntimeError, ToolError), match="has ended"):
        way(session, go_on)


STOPS = {
    "call": lambda session, work: session.call("do", {"what": work}, timeout=0.5),
    "acall": lambda session, work: asyncio.run(session.acall("do", {"what": work}, timeout=0.5)),
    "cell": lambda session, work: (
        session.push({"work": work}),
        session.run("import snakepit_kernel; work(snakepit_kernel.context())", timeout=0.5),
    ),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("kind", ["run", "stream"])
def test_a_call_that_times_out_interrupts_its_command_and_state_stays(
    session, stop, kind, tmp_path
):
    file = tmp_path / "pid"

    def work(context: Any) -> None:
        command = f"x=kept; sleep 60 & echo $! >{file}; wait"
        context.shell.run(command) if kind == "run" else list(context.shell.stream(command))

    began = time.monotonic()
    with pytest.raises(CallTimeout):
        stop(session, work)

    assert time.monotonic() - began < SOON
    assert session.shell.run("echo $x").stdout == "kept\n"
    wait_until(lambda: not is_alive(pid_in(file)))


def test_a_future_that_is_cancelled_interrupts_its_command(session, tmp_path):
    file = tmp_path / "pid"

    def work(context: Any) -> None:
        context.shell.run(f"x=kept; sleep 60 & echo $! >{file}; wait")

    future = session.submit(_in_context, work)
    pid = pid_in(file)
    future.cancel()

    wait_until(lambda: not is_alive(pid))
    assert session.shell.run("echo $x").stdout == "kept\n"


def test_ctrl_c_at_the_owner_interrupts_the_command_and_leaves_the_worker(session, tmp_path):
    file = tmp_path / "pid"
    before = session.call("do", {"what": lambda _: os.getpid()})

    def work(context: Any) -> None:
        context.shell.run(f"x=kept; sleep 60 & echo $! >{file}; wait")

    def press() -> None:
        pid_in(file)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        session.call("do", {"what": work})
    pressing.join()

    assert session.shell.run("echo $x").stdout == "kept\n"
    wait_until(lambda: not is_alive(pid_in(file)))
    assert session.call("do", {"what": lambda _: os.getpid()}) == before


def test_a_thread_of_a_call_interrupts_the_command_that_another_one_waits_for(session, way):
    """The thread that serves the first is free for the second."""

    def work(context: Any) -> tuple[int, bool, float]:
        import threading
        import time

        def stop() -> None:
            while not context.shell.is_busy:
                time.sleep(0.01)
            context.shell.interrupt()

        stopping = threading.Thread(target=stop)
        stopping.start()
        began = time.monotonic()
        result = context.shell.run("sleep 60")
        stopping.join()
        return result.returncode, result.interrupted, time.monotonic() - began

    status, interrupted, seconds = way(session, work)

    assert (status, interrupted) == (130, True)
    assert seconds < SOON


@pytest.mark.parametrize("way", ["call", "acall", "future", "cell"])
@pytest.mark.parametrize("kind", ["run", "stream"])
def test_a_worker_that_dies_takes_its_command_with_it(alone, way, kind, tmp_path):
    session, file = alone.session("s"), tmp_path / "pid"

    def work(context: Any) -> None:
        command = f"x=kept; sleep 60 & echo $! >{file}; wait"
        context.shell.run(command) if kind == "run" else list(context.shell.stream(command))

    worker = session.call("do", {"what": lambda _: os.getpid()})

    def shoot() -> None:
        pid_in(file)
        os.kill(worker, signal.SIGKILL)

    shooting = threading.Thread(target=shoot)
    shooting.start()
    with pytest.raises(WorkerDied):
        WAYS[way](session, work)
    shooting.join()

    assert session.shell.run("echo $x").stdout == "kept\n"
    wait_until(lambda: not is_alive(pid_in(file)))
    assert session.call("do", {"what": lambda c: c.shell.run("echo $x").stdout}) == "kept\n"


# -- events ----------------------------------------------------------------------------------------


def test_the_id_of_a_call_is_in_the_result_and_the_event_of_its_commands(session, way):
    events = []
    with telemetry.subscribe(events.append):

        def work(context: Any) -> tuple[str, str, str]:
            ran = context.shell.run("exit 3").correlation_id
            list(context.shell.stream("true"))
            return context.correlation_id, ran, context.shell.last.correlation_id

        ids = way(session, work)
        wait_until(lambda: sum(event.name == "shell" for event in events) == 2)

    commands = [event.attributes for event in events if event.name == "shell"]
    assert len(set(ids)) == 1
    assert {each["correlation_id"] for each in commands} == set(ids)
    assert [(each["returncode"], each["outcome"]) for each in commands] == [(3, "error"), (0, "ok")]


# -- processes -------------------------------------------------------------------------------------


def test_a_worker_starts_a_process_that_outlives_its_call_and_that_all_can_use(session, way):
    session.shell.run("said=hello")

    def start(context: Any) -> Process:
        process = context.processes.start('echo "$said"; read x; echo "got $x"; exit 4', name="p")
        assert process.wait_for_log("hel+o") == "hello"
        return process

    process = way(session, start)

    assert isinstance(process, Process)
    assert process.status == "running"
    assert [each.id for each in session.processes.list()] == [process.id]

    def end(context: Any) -> tuple[Any, ...]:
        found = context.processes.get("p")
        found.send_input("this\n")
        status = found.wait(5)
        text = b"".join(chunk.data for chunk in found.follow())
        return found.id, status, found.status, found.returncode, text, found.logs().text

    text = "hello\ngot this\n"
    assert way(session, end) == (process.id, 4, "failed", 4, text.encode(), text)
    assert process.returncode == 4


def test_a_worker_lists_and_kills_the_processes_of_its_session_and_any_by_its_id(opened, session):
    other = opened.session("other")
    theirs = other.processes.start("sleep 60")
    mine = [session.processes.start("sleep 60") for _ in range(2)]

    def work(context: Any) -> tuple[Any, ...]:
        listed = [each.id for each in context.processes.list()]
        killed = context.processes.kill_all(grace=1.0)
        return listed, killed, context.processes.kill(theirs_id), repr(context.processes)

    theirs_id = theirs.id
    listed, killed, status, shown = session.call("do", {"what": work})

    assert listed == [each.id for each in mine]
    assert (killed, status) == (2, 143)
    assert shown.count("killed 143") == 2
    assert {each.status for each in [theirs, *mine]} == {"killed"}
    other.delete()


def test_a_worker_waits_for_the_port_of_a_process(session):
    def work(context: Any) -> bool:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = f"import socket; s = socket.create_server(('127.0.0.1', {port})); s.accept()"
        process = context.processes.start(f'sleep 0.2; exec python3 -c "{server}"')
        process.wait_for_port(port)
        return process.wait(5) == 0

    assert session.call("do", {"what": work}, timeout=20)


def test_the_cwd_of_a_process_is_seen_from_the_worker(session, tmp_path):
    here = str(tmp_path)
    (tmp_path / "sub").mkdir()

    def work(context: Any) -> str:
        import os

        os.chdir(here)
        process = context.processes.start("pwd", cwd="sub")
        process.wait(5)
        return process.logs().text

    assert session.call("do", {"what": work}) == f"{here}/sub\n"


def test_a_function_that_names_the_package_and_processes_goes_to_a_worker(session):
    """``snakepit_kernel.processes`` is a function and a package, which is pickled with it."""
    process = session.processes.start("sleep 60")
    known = {"snakepit_kernel": snakepit_kernel, "processes": snakepit_kernel.processes}
    code = "def work(): return [p.id for p in processes()], snakepit_kernel.processes.__name__"
    exec(code, known)
    known["work"].__module__ = "__main__"

    ids, name = session.submit(known["work"]).result()

    assert process.id in ids
    assert name == "snakepit_kernel.processes"


def test_a_shell_that_a_function_refers_to_is_refused_with_the_way_to_get_one(session):
    shell = session.shell

    with pytest.raises(
        TypeError, match=r"snakepit_kernel.context\(\).shell is that of the session"
    ):
        session.submit(_in_context, lambda _: shell.run("pwd"))


# -- the message -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "method"), [("shell", "close"), ("shell", "_await"), ("processes", "kill_all")]
)
def test_a_worker_cannot_call_what_is_not_for_workers(session, part, method):
    def work(context: Any) -> None:
        context._call_session(part, method)

    with pytest.raises(ToolError, match=f"have no method '{method}' for workers"):
        session.call("do", {"what": work})


def test_a_worker_cannot_read_what_is_not_for_workers(session):
    with pytest.raises(ToolError, match="has no attribute '_driver' for workers"):
        session.call("do", {"what": lambda c: c.shell._ask("attribute", "_driver")})


def test_the_shell_of_a_worker_has_what_its_owner_s_has():
    """But for what ends it, or makes another one."""
    theirs = {name for name in dir(RemoteShell) if not name.startswith("_")}
    ours = {name for name in dir(snakepit_kernel.Shell) if not name.startswith("_")}

    assert ours - theirs == {"checkpoint", "close", "fork", "pid", "settled"}
    assert theirs <= ours
