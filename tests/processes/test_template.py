"""Templates: who starts them, what makes them unfit, and when they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from snakepit_kernel import Pool
from snakepit_kernel.ids import RUN_ID_VARIABLE, new_run_id
from snakepit_kernel.processes import guarded_process
from snakepit_kernel.processes import template as module
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.template import (
    CannotFork,
    Template,
    TemplateKind,
    template_for,
    templates,
)
from snakepit_kernel.processes.template_process import CHECK

pytestmark = pytest.mark.usefixtures("with_templates")

CGROUPS = [
    path.parent
    for path in Path("/sys/fs/cgroup").glob("pids/cgroup.procs")
    if os.access(path.parent, os.W_OK)
]
"""Where the number of processes of a group can be limited."""

PROGRAM = (sys.executable, "-m", "snakepit_kernel.kernel", "--template")


@pytest.fixture(autouse=True)
def no_templates_but_our_own() -> Iterator[None]:
    module.close_templates()
    module._refused.clear()
    yield
    module.close_templates()
    module._refused.clear()


@pytest.fixture
def write_module(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Write a module where this process finds it; return its file."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(code))
        sys.modules.pop(name, None)
        return path

    return write


def value_of(pool: Pool, expression: str) -> Any:
    result = pool.run(expression)
    assert result.ok, result.stderr
    return result.value


def ways(pool: Pool) -> set[str | None]:
    """Why the workers of a pool were not forked; None for those that were."""
    workers = pool._engine.supervisor.workers.values()
    return {worker.process.guarded.not_forked_because for worker in workers}


# -- what it imports -----------------------------------------------------------------------------


def test_a_module_is_imported_once_for_all_workers(write_module):
    write_module("costly", "import os\nwhere = os.getpid()")
    with Pool(workers=2, preload=["costly"]) as pool:
        (template,) = templates()
        found = pool.run_all("import costly; costly.where")
        assert {result.value for result in found} == {template.identity.pid}
        assert ways(pool) == {None}


def test_workers_share_no_seed_of_what_was_imported_ahead():
    code = (
        "import multiprocessing, numpy, random; (numpy.random.rand(), random.random(), "
        "bytes(multiprocessing.current_process().authkey))"
    )
    with Pool(workers=2, preload=["numpy.random", "multiprocessing"]) as pool:
        one, other = (result.value for result in pool.run_all(code))
        assert [a for a, b in zip(one, other, strict=True) if a == b] == []


def test_what_an_import_sets_in_the_environment_is_set_in_the_workers(write_module):
    write_module("setter", "import os\nos.environ['SET'] = 'ahead'\nos.environ['MINE'] = 'ahead'")
    with Pool(workers=1, preload=["setter"]) as pool:
        code = "import os; os.environ['SET'], os.environ['MINE']"
        assert value_of(pool, code) == ("ahead", "ahead")


def test_a_module_that_cannot_be_imported_is_named_and_the_workers_work(write_module, caplog):
    write_module("broken", "raise LookupError('no such luck')")
    with Pool(workers=1, preload=["broken", "json"]) as pool:
        assert pool.submit(pow, 2, 3).result() == 8
        assert ways(pool) == {None}
    assert "broken" in caplog.text
    assert "no such luck" in caplog.text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import threading as t\nt.Timer(600, print).start()",
            "started threads",
        ),
        ("import socket\nkept = socket.socket()", "socket"),
        ("import os\nkept = os.pipe()", "file that a fork would share"),
        ("import zmq\nkept = zmq.Context(); s = kept.socket(zmq.PUB)", "file that a fork"),
        ("import asyncio\nloop = asyncio.new_event_loop()", "file that a fork would share"),
        ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])", "process"),
    ],
)
def test_a_module_that_makes_forking_unsafe_is_named_and_each_worker_imports_it(
    write_module, caplog, code, reason
):
    write_module("unruly", code)
    write_module("quiet", "import os\nwhere = os.getpid()")
    with Pool(workers=1, preload=["quiet", "unruly"]) as pool:
        assert value_of(pool, "import sys; 'unruly' in sys.modules")
        assert ways(pool) == {None}
        (template,) = templates()
        assert value_of(pool, "import quiet; quiet.where") == template.identity.pid
    (warning,) = [text for text in caplog.messages if "not imported ahead" in text]
    assert "unruly" in warning
    assert reason in warning


def test_threads_that_end_at_a_fork_are_no_reason_to_refuse(write_module, caplog):
    write_module("numeric", "import numpy\nnumpy.ones((300, 300)) @ numpy.ones((300, 300))")
    with Pool(workers=1, preload=["numeric"], env={"OPENBLAS_NUM_THREADS": "2"}) as pool:
        code = "import numpy; float((numpy.ones((300, 300)) @ numpy.ones((300, 300)))[0, 0])"
        assert value_of(pool, code) == 300.0
        assert ways(pool) == {None}
    assert "not imported ahead" not in caplog.text


# -- when it is replaced -------------------------------------------------------------------------


def test_a_module_learns_how_the_commands_end_that_it_runs(write_module):
    write_module("asking", "import subprocess; status = subprocess.call(['false'])")
    with Pool(workers=1, preload=["asking"]) as pool:
        assert ways(pool) == {None}
        assert value_of(pool, "__import__('asking').status") == 1


def test_one_whose_question_nobody_waits_for_lives_on(process_of):
    with Pool(workers=1) as pool:
        (template,) = templates()
        ours, theirs = socket.socketpair()
        os.kill(template.identity.pid, signal.SIGSTOP)
        template._send(CHECK, [theirs.fileno()])
        ours.close()
        theirs.close()
        os.kill(template.identity.pid, signal.SIGCONT)
        assert asyncio.run(template.reason_not_to_fork()) == ""
        assert process_of(template.identity.pid).is_alive
        assert pool.submit(pow, 2, 3).result() == 8


def test_an_edited_module_is_imported_anew(write_module):
    path = write_module("edited", "version = 1")
    with Pool(workers=1, preload=["edited"]) as pool:
        assert value_of(pool, "import edited; edited.version") == 1
    before = templates()
    path.write_text("version = 'two'")
    with Pool(workers=1, preload=["edited"]) as pool:
        assert value_of(pool, "import edited; edited.version") == "two"
        assert ways(pool) == {None}
    assert len(templates()) == 1
    assert templates() != before


@pytest.mark.parametrize("change", ["package", "pth"])
def test_an_installation_replaces_it(tmp_path, monkeypatch, change):
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "local.pth").write_text("")
    monkeypatch.syspath_prepend(str(site))
    with Pool(workers=1):
        before = templates()
    time.sleep(0.02)  # the clock of the file system ticks
    with Pool(workers=1):
        assert templates() == before
    monkeypatch.setenv("PYTHONPATH", str(site))
    with Pool(workers=1):
        (chosen,) = [template for template in templates() if template not in before]
        if change == "package":
            (site / "new.py").write_text("")
        else:
            (site / "local.pth").write_text(str(tmp_path))
    with Pool(workers=1) as pool:
        assert ways(pool) == {None}
        assert chosen not in templates()


def test_a_folder_beside_the_notebook_cannot_stand_in_for_this_package(start_kernel, tmp_path):
    impostor = tmp_path / "snakepit_kernel"
    impostor.mkdir()
    impostor.joinpath("__init__.py").write_text("raise SystemExit('an impostor')")

    async def scenario() -> None:
        async with start_kernel(launch={"cwd": str(tmp_path)}) as kernel:
            assert kernel.km.provisioner.guarded.not_forked_because is None

    asyncio.run(scenario())


def test_variables_that_matter_to_imports_have_a_template_of_their_own(monkeypatch):
    with Pool(workers=1) as pool, Pool(workers=1, name="other") as other:
        assert len(templates()) == 1
        with Pool(workers=1, name="third", env={"PYTHONPATH": "/nowhere"}) as third:
            assert len(templates()) == 2
            assert value_of(third, "import sys; '/nowhere' in sys.path")
            assert ways(third) == {None}
        with Pool(workers=1, name="fourth", env={"MINE": "1"}) as fourth:
            assert value_of(fourth, "import os; os.environ['MINE']") == "1"
            assert len(templates()) == 2
        assert ways(pool) == ways(other) == {None}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
def test_what_the_owner_gives_up_is_given_up_for_what_follows():
    """Processors here, as an ordinary user cannot try it with users and groups."""
    before = os.sched_getaffinity(0)
    with Pool(workers=1):
        pass
    os.sched_setaffinity(0, {min(before)})
    try:
        with Pool(workers=1) as pool:
            assert ways(pool) == {None}
            assert value_of(pool, "__import__('os').sched_getaffinity(0)") == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def start_program(code: str) -> tuple[GuardedProcess, str]:
    """Run a program to its end; return it, and its output."""
    return asyncio.run(_run_program(code))


async def _run_program(code: str) -> tuple[GuardedProcess, str]:
    reading, writing = os.pipe()
    with open(reading) as output:
        spec = LaunchSpec.of(
            [sys.executable, "-c", code],
            run_id=new_run_id(),
            grace=1.0,
            env={**os.environ, "GIVEN": "g"},
            cwd="/",
            leftovers=[],
            is_program=True,
            stdout=writing,
        )
        process = await GuardedProcess.start(spec)
        os.close(writing)
        assert await process.wait() == 0
        await process.end(1.0)
        return process, output.read()


def test_programs_are_forked_from_a_small_template_as_if_they_had_been_executed(
    with_templates,
):
    show = """
import os, signal
ignored = [n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN and n not in (13, 25)]
print(os.getcwd(), os.environ["GIVEN"], ignored, sorted(os.listdir("/proc/self/fd"))[:-1])
print(os.getsid(0) == os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    process, output = start_program(show)

    assert output.splitlines() == ["/ g [] ['0', '1', '2']", "True set()"]
    assert process.not_forked_because is None
    assert process.template.kind == module.PROGRAMS
    with Pool(1):
        small, large = (
            psutil.Process(template.identity.pid).memory_info().rss for template in templates()
        )
        assert small < large / 2
        assert start_program("")[0].template.kind == module.PROGRAMS


def test_as_many_templates_are_kept_as_is_decent(monkeypatch):
    monkeypatch.setattr(module, "MAX_TEMPLATES", 2)
    for number in range(4):
        with Pool(workers=1, env={"PYTHONPATH": f"/nowhere/{number}"}):
            pass
    assert len(templates()) == 2


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_is_replaced_and_its_kernels_live_on(signum, process_of):
    with Pool(workers=1) as pool:
        (template,) = templates()
        process = process_of(template.identity.pid)
        os.kill(process.pid, signum)
        assert process.wait_gone()

        assert pool.submit(pow, 2, 3).result() == 8
        with Pool(workers=1, name="next") as following:
            assert ways(following) == {None}
        assert templates() != [template]
        assert pool.submit(pow, 2, 3).result() == 8


def test_a_guardian_that_falls_to_its_owner_is_reaped():
    """These tests run in a subreaper, as the first process of a container is one."""
    with Pool(workers=1) as pool:
        (worker,) = pool._engine.supervisor.workers.values()
        guardian = worker.process.guarded.guardian
        module.close_templates()
    assert not Path(f"/proc/{guardian.pid}").exists()


def test_one_that_dies_while_it_is_asked_costs_no_kernel_and_makes_no_second(living):
    """It is stopped, so that requests wait in its channel, and killed then."""
    with Pool(workers=1):
        (template,) = templates()
        os.kill(template.identity.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (template.identity.pid, signal.SIGKILL)).start()
        with Pool(workers=3, name="next") as pool:
            pids = {status.pid for status in pool.status().workers}
            assert len(pids) == 3
            kernels = [
                item for item in living() if " -f " in str(item) and "guard" not in str(item)
            ]
            assert len(kernels) == 4


def test_one_that_was_stopped_delays_no_start_and_is_replaced(process_of):
    with Pool(workers=1):
        (template,) = templates()
        process = process_of(template.identity.pid)
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with Pool(workers=2, name="next") as pool:
            assert time.monotonic() - began < 2
            assert pool.submit(pow, 2, 3).result() == 8
        assert not process.is_alive
        with Pool(workers=1, name="last") as pool:
            assert ways(pool) == {None}


@pytest.mark.parametrize("goes_on", [False, True])
def test_one_that_says_nothing_is_ended_and_makes_no_second_kernel(living, monkeypatch, goes_on):
    with Pool(workers=1):
        monkeypatch.setattr(guarded_process, "TEMPLATE_PATIENCE", 0.5)
        (template,) = templates()
        os.kill(template.identity.pid, signal.SIGSTOP)
        if goes_on:

            def discard(template: Template) -> None:
                os.kill(template.identity.pid, signal.SIGCONT)
                module.discard(template)

            monkeypatch.setattr(guarded_process, "discard", discard)
        with Pool(workers=1, name="next") as pool:
            assert pool.submit(pow, 2, 3).result() == 8
            assert goes_on or ways(pool) == {"its template ended"}
            monkeypatch.undo()
            kernels = [
                item for item in living() if " -f " in str(item) and "guard" not in str(item)
            ]
            assert len(kernels) == 2
        with Pool(workers=1, name="last") as pool:
            assert ways(pool) == {None}
            assert templates() != [template]


def test_one_that_cannot_start_means_exec_and_says_why(tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--template*) echo "no luck" >&2; exit 3;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o700)
    kind = TemplateKind((str(program), *PROGRAM[1:]))

    async def scenario() -> None:
        run_id = new_run_id()
        process = await GuardedProcess.start(
            LaunchSpec.of(
                ["sleep", "600"],
                run_id=run_id,
                grace=0.1,
                env={**os.environ, RUN_ID_VARIABLE: run_id},
            ),
            kind=kind,
        )
        await process.end(0.0)
        assert "no luck" in process.not_forked_because

    asyncio.run(scenario())


def test_templates_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(module.TEMPLATE_VARIABLE, "0")
    with pytest.raises(CannotFork, match="SNAKEPIT_TEMPLATE=0"):
        template_for(TemplateKind(PROGRAM), env=os.environ)
    with Pool(workers=1) as pool:
        assert ways(pool) == {"SNAKEPIT_TEMPLATE=0"}
        assert value_of(pool, "6 * 7") == 42
    assert templates() == []


# -- when it ends --------------------------------------------------------------------------------

OWNER = """
import os, signal, sys
from snakepit_kernel import Pool
from snakepit_kernel.processes.template import templates
pool = Pool(workers=1)
pool.run("import subprocess; child = subprocess.Popen(['setsid', 'sleep', '600'])")
(template,) = templates()
print(template.identity.pid, flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], int]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=pipe, stdout=pipe, text=True) as it:
        yield it, int(it.stdout.readline())


@pytest.mark.parametrize("end", ["exit", "SIGTERM", "SIGKILL", "SIGKILL while it is stopped"])
def test_it_ends_with_its_owner(living, process_of, end):
    with owner() as (process, pid):
        template = process_of(pid)
        if end == "exit":
            process.stdin.close()
        else:
            if "stopped" in end:
                os.kill(pid, signal.SIGSTOP)
            process.send_signal(getattr(signal, end.split()[0]))
        process.wait(20)
        assert template.wait_gone(5.0)
    assert [str(item) for item in living() if not item.wait_gone(5.0)] == []


def test_a_forked_child_of_the_owner_does_not_hold_it(process_of):
    code = OWNER.replace("sys.stdin.readline()", "") + (
        "child = os.fork()\n"
        "if child == 0:\n    import time; time.sleep(1); os._exit(0)\n"
        "sys.stdin.readline(); os.kill(os.getpid(), 9)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as it:
        template = process_of(int(it.stdout.readline()))
        it.stdin.close()
        it.wait(20)
        assert template.wait_gone(0.5)
        it.stdout.read()  # the child is gone as well


def test_an_interrupt_from_the_terminal_does_not_reach_it():
    with Pool(workers=1):
        (template,) = templates()
        assert os.getpgid(template.identity.pid) != os.getpgrp()
        os.kill(template.identity.pid, signal.SIGINT)
        with Pool(workers=1, name="next") as pool:
            assert ways(pool) == {None}
        assert templates() == [template]


# -- a pool in a notebook ------------------------------------------------------------------------

NOTEBOOK = """
import os, psutil, snakepit_kernel
from snakepit_kernel.processes.template import templates
pool = snakepit_kernel.Pool(workers=2, preload=["json"])
(template,) = templates()
print(os.getppid(), template.identity.pid, psutil.Process(template.identity.pid).ppid(),
      *[worker.pid for worker in pool.status().workers])
"""


def test_the_guardian_of_a_notebook_forks_the_template_of_its_pools(start_kernel, process_of):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            guardian, template, parent, *workers = map(int, (await kernel.run(NOTEBOOK)).split())
            assert parent == guardian
            assert len(workers) == 2
            run_id = kernel.km.provisioner.run_id
            command = Path(f"/proc/{template}/cmdline").read_text().split(" ")
            assert command[:2] == ["snakepit-template", f"--owner={kernel.identity}"]
            assert f"SNAKEPIT_RUN_ID={run_id}" in Path(f"/proc/{template}/environ").read_text()
            processes = [process_of(pid) for pid in (template, *workers)]

            await kernel.km.restart_kernel()
            assert [str(item) for item in processes if item.is_alive] == []
            await kernel.ready()
            assert len((await kernel.run(NOTEBOOK)).split()) == 5

    asyncio.run(scenario())


def test_a_notebook_that_changed_what_matters_to_imports_gets_another_template(start_kernel):
    code = "import os; os.environ['PYTHONPATH'] = '/nowhere'" + NOTEBOOK

    async def scenario() -> None:
        async with start_kernel() as kernel:
            _, template, parent, *_ = map(int, (await kernel.run(code)).split())
            assert parent == kernel.pid
            assert "--template" in Path(f"/proc/{template}/cmdline").read_text()
            assert (await kernel.run("print(pool.run('import sys; sys.path').value)")).count(
                "'/nowhere'"
            ) == 1

    asyncio.run(scenario())


# -- what it hands on ----------------------------------------------------------------------------

WITHOUT_STREAMS = """
import asyncio, os, sys
os.dup2(1, 9)
for number in range(3):
    os.close(number)
own = [os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) for _ in range(3)]  # close-on-exec
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.template import TemplateKind

async def main():
    program = (sys.executable, "-m", "snakepit_kernel.kernel")
    run_id = new_run_id()
    process = await GuardedProcess.start(
        LaunchSpec.of([*program, "-f", sys.argv[1] + ".json"],
            run_id=run_id, grace=0.1, env=os.environ),
        kind=TemplateKind((*program, "--template")),
    )
    assert process.not_forked_because is None
    found = os.listdir(f"/proc/{process.identity.pid}/fd")
    links = {os.readlink(f"/proc/{process.identity.pid}/fd/{name}") for name in found}
    await process.end(0.0)
    os.write(9, repr(sys.argv[1] in links).encode())

asyncio.run(main())
"""


def test_what_took_the_number_of_a_closed_stream_stays_the_owners(tmp_path):
    command = [sys.executable, "-c", WITHOUT_STREAMS, str(tmp_path / "own")]
    assert subprocess.check_output(command, timeout=60) == b"False"


PREEMPTED = """
import asyncio, os, pathlib, sys, time
from snakepit_kernel.errors import StartFailed
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.template import TemplateKind

group = pathlib.Path(sys.argv[2])
(group / "cgroup.procs").write_text(str(os.getpid()))

async def start():
    program = (sys.executable, "-m", "snakepit_kernel.kernel")
    run_id = new_run_id()
    process = await GuardedProcess.start(
        LaunchSpec.of([*program, "-f", f"{sys.argv[1]}/kernel.json"],
            run_id=run_id, grace=0.1, env=os.environ),
        kind=TemplateKind((*program, "--template")),
    )
    await process.end(0.0)
    return process.not_forked_because

def count():
    last = None
    while (now := (group / "pids.current").read_text()) != last:
        last = now
        time.sleep(0.2)  # who has just ended counts for a moment more
    return now

assert asyncio.run(start()) is None
number = count()
for room in range(2):  # for neither, and for a guardian without a kernel
    (group / "pids.max").write_text(str(int(number) + room))
    try:
        asyncio.run(start())
    except StartFailed as error:
        print(error)
    assert count() == number
(group / "pids.max").write_text("max")
assert asyncio.run(start()) is None
"""


@pytest.mark.skipif(not CGROUPS, reason="no cgroup can be made that limits processes")
def test_a_full_process_table_is_named_and_nothing_is_left(tmp_path):
    group = CGROUPS[0] / f"snakepit-test-{os.getpid()}"
    group.mkdir()
    try:
        command = [sys.executable, "-c", PREEMPTED, str(tmp_path), str(group)]
        said = subprocess.check_output(command, timeout=60, text=True)
    finally:
        until = time.monotonic() + 5
        while (group / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        group.rmdir()
    assert len(re.findall(r"could not start: .* limit on the number of processes", said)) == 2


UNIGNORED = """
import asyncio, os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.template import TemplateKind

async def start():
    program = (sys.executable, "-m", "snakepit_kernel.kernel")
    run_id = new_run_id()
    process = await GuardedProcess.start(
        LaunchSpec.of([*program, "-f", f"{sys.argv[1]}/kernel.json"],
            run_id=run_id, grace=0.1, env=os.environ),
        before=lambda: asyncio.sleep(0.2),
        kind=TemplateKind((*program, "--template"), ("edited",), (sys.argv[1],)),
    )
    assert process.not_forked_because is None
    await process.end(0.0)

path = pathlib.Path(sys.argv[1], "edited.py")
for number in range(2):
    path.write_text(f"number = {number * 1000}")
    asyncio.run(start())
"""


def test_an_owner_that_does_not_ignore_sigpipe_survives_a_template_that_refuses(tmp_path):
    command = [sys.executable, "-c", UNIGNORED, str(tmp_path)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_a_kernel_runs_nothing_before_its_start_is_allowed(tmp_path):
    """It would write its connection file in a tenth of the time for which it has to wait here."""
    existed = []

    async def start(number: int) -> None:
        path = tmp_path / f"kernel-{number}.json"

        async def take_a_while() -> None:
            await asyncio.sleep(number)
            existed.append(path.exists())

        run_id = new_run_id()
        process = await GuardedProcess.start(
            LaunchSpec.of(
                [*PROGRAM[:-1], "-f", str(path)],
                run_id=run_id,
                grace=0.1,
                env={**os.environ, RUN_ID_VARIABLE: run_id},
            ),
            before=take_a_while,
            kind=TemplateKind(PROGRAM),
        )
        assert await process.ready(20)
        existed.append(path.exists())
        await process.end(0.0)
        assert process.not_forked_because is None

    asyncio.run(start(0))  # starts the template
    asyncio.run(start(1))
    assert existed == [False, True] * 2


def test_a_start_that_is_cancelled_while_its_template_imports_leaves_nothing_open(
    write_module, tmp_path, monkeypatch
):
    write_module("slow_to_import", "import time\ntime.sleep(4)")
    monkeypatch.setattr(guarded_process, "END_PATIENCE", 1.0)

    async def scenario() -> None:
        task = asyncio.create_task(
            GuardedProcess.start(
                LaunchSpec.of(
                    [*PROGRAM[:-1], "-f", str(tmp_path / "kernel.json")],
                    run_id=new_run_id(),
                    grace=0.1,
                    env=os.environ,
                ),
                before=lambda: asyncio.sleep(600),
                kind=TemplateKind(PROGRAM, ("slow_to_import",), (str(tmp_path),)),
            )
        )
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(scenario())
    module.close_templates()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_template_of_an_interpreter_in_a_relative_place(tmp_path, monkeypatch):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)

    async def scenario() -> None:
        run_id = new_run_id()
        process = await GuardedProcess.start(
            LaunchSpec.of(
                ["./python", "-m", "snakepit_kernel.kernel", "-f", str(tmp_path / "kernel.json")],
                run_id=run_id,
                grace=0.1,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path))},
            ),
            kind=TemplateKind(("./python", *PROGRAM[1:])),
        )
        await process.end(0.0)
        assert process.not_forked_because is None

    asyncio.run(scenario())


def test_what_an_import_started_is_ended_by_the_next_start_when_the_owner_dies_meanwhile(
    tmp_path, process_of, start_and_shut_down
):
    (tmp_path / "starter.py").write_text(
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{child.pid}}\\n')\n"
        "time.sleep(600)\n"
    )
    code = "from snakepit_kernel import Pool; Pool(workers=1, preload=['starter'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        until = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        child = process_of(int((tmp_path / "pid").read_text()))
        process.kill()
    start_and_shut_down()
    assert not child.is_alive
