"""Kernels that are kept ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from traitlets.config import Config

from snakepit_kernel import standby_kernels
from snakepit_kernel.errors import StartFailed
from snakepit_kernel.processes import guarded_process
from snakepit_kernel.processes.guardian import Options
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.processes.template import Template, templates
from snakepit_kernel.processes.template_process import ForkedGuardian

pytestmark = pytest.mark.usefixtures("with_templates")

SOON = 20.0

CONFIG = Config({"SnakepitProvisioner": {"standby": 1, "grace": 0.5}})


@pytest.fixture(autouse=True)
def no_standbys_but_our_own() -> Iterator[None]:
    yield
    standby_kernels.close()


@pytest.fixture
def start(start_kernel) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    @contextlib.asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Any]:
        async with start_kernel(config=CONFIG, **options) as kernel:
            yield kernel

    return run


def waiting() -> list[str]:
    """The runs that are kept ready."""
    return [
        run.run_id
        for run in Registry().runs()
        if run.label == standby_kernels.LABEL and run.process
    ]


async def one_waits() -> str:
    """Wait until a kernel is kept ready by this process; return its run."""
    until = time.monotonic() + SOON
    while not (found := set(waiting()) & _at_hand()):  # it is written down a moment before
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    (run_id,) = found
    return run_id


def _at_hand() -> set[str]:
    """The runs that the next start can have."""
    kernels = standby_kernels._standby_kernels
    return {run.run_id for runs in kernels._waiting.values() for run in runs}


SURROUNDINGS = """
import os, sys
print(os.getcwd(), os.environ.get("MINE"), os.environ["SNAKEPIT_RUN_ID"], sys.argv[2], os.getpid())
"""


@pytest.mark.parametrize(("transport", "warns"), [("tcp", True), ("ipc", False)])
def test_one_that_waited_warns_of_plain_tcp_where_that_is_what_it_got(
    start, capfd, transport, warns
):
    async def scenario() -> None:
        async with start(transport=transport):
            run_id = await one_waits()
            capfd.readouterr()
            async with start(transport=transport) as kernel:
                assert kernel.km.provisioner.run_id == run_id
                assert await kernel.run("1 + 1") == "2"

    asyncio.run(scenario())
    said = capfd.readouterr()
    assert ("without encryption" in said.out + said.err) is warns


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_the_next_kernel_is_the_one_that_waits(start, tmp_path, transport):
    async def scenario() -> None:
        async with start(transport=transport):
            run_id = await one_waits()
            launch = {"cwd": tmp_path, "env": {**os.environ, "MINE": "yes"}}
            async with start(transport=transport, launch=launch) as kernel:
                file = kernel.km.connection_file
                expected = f"{tmp_path} yes {run_id} {file} {kernel.pid}"
                assert await kernel.run(SURROUNDINGS) == expected
                assert kernel.km.provisioner.run_id == run_id
                (row,) = [run for run in Registry().runs() if run.run_id == run_id]
                assert row.label == "Python 3 (Snakepit)"
                assert str(Path(file).absolute()) in row.leftovers
                command = Path(f"/proc/{kernel.pid}/cmdline").read_text()
                assert f"-f {file} --snakepit-run-id={run_id}" in command
                assert await kernel.run("1 + 1") == "2"
                assert await kernel.run("print(len(In), _)") == "4 2"  # a rehearsal leaves no trace
            assert await one_waits() != run_id

    asyncio.run(scenario())


@pytest.mark.parametrize("now", [True, False])
def test_a_restart_takes_it_and_the_old_run_is_gone_first(start, living, now):
    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            await kernel.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
            before = {item.pid for item in living() if "sleep 600" in str(item)}

            await kernel.km.restart_kernel(now=now)

            assert [str(item) for item in living() if item.pid in before] == []
            assert kernel.km.provisioner.run_id == run_id
            await kernel.ready()
            assert await kernel.run("print('child' in globals())") == "False"
            assert "sleep 600" in await kernel.run("%snakepit\nprint('told: sleep 600')")

    asyncio.run(scenario())


def test_one_that_is_needed_before_it_is_prepared_is_prepared_at_once(start):
    async def scenario() -> None:
        async with start() as kernel:
            for _ in range(3):
                until = time.monotonic() + SOON
                while not waiting() and time.monotonic() < until:
                    await asyncio.sleep(0.001)  # it is prepared from now on
                began = time.monotonic()
                await kernel.km.restart_kernel(now=True)
                await kernel.ready()
                assert time.monotonic() - began < SOON / 2
                assert await kernel.run("print(6 * 7)") == "42"

    asyncio.run(scenario())


def test_it_waits_while_a_cell_runs(start):
    async def scenario() -> None:
        async with start() as kernel:
            kernel.kc.execute("import time; time.sleep(1.5)")
            run_id = await one_waits()
            (row,) = [run for run in Registry().runs() if run.run_id == run_id]
            used = []
            for _ in range(5):
                await asyncio.sleep(0.1)
                fields = (
                    Path(f"/proc/{row.process.pid}/stat").read_text().rpartition(")")[2].split()
                )
                used.append(int(fields[11]) + int(fields[12]))
            assert used[-1] <= 2  # ticks of 10 ms; to prepare a kernel takes six

    asyncio.run(scenario())


def test_one_that_does_not_answer_is_ended_and_not_taken(start, process_of, monkeypatch):
    monkeypatch.setattr(guarded_process, "ASSIGN_PATIENCE", 0.5)

    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            (row,) = [run for run in Registry().runs() if run.run_id == run_id]
            process = process_of(row.process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert kernel.km.provisioner.run_id != run_id
            assert not process.is_alive

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["process", "guardian", "template"])
def test_one_that_was_stopped_is_ended_and_not_waited_for(start, process_of, victim):
    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            (row,) = [run for run in Registry().runs() if run.run_id == run_id]
            process = process_of(row.process.pid)
            template = kernel.km.provisioner.guarded.template
            stopped = template.identity if victim == "template" else getattr(row, victim)
            os.kill(stopped.pid, signal.SIGSTOP)
            began = time.monotonic()
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert time.monotonic() - began < 10  # it would be waited for three times as long
            assert kernel.km.provisioner.run_id != run_id
            assert process.wait_gone()

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["process", "guardian"])
def test_one_that_died_is_not_taken(start, process_of, victim):
    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            (row,) = [run for run in Registry().runs() if run.run_id == run_id]
            process = process_of(getattr(row, victim).pid)
            process.kill()
            assert process.wait_gone()
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert kernel.km.provisioner.run_id != run_id
            assert await kernel.run("print(6 * 7)") == "42"

    asyncio.run(scenario())


def test_one_whose_template_is_out_of_date_is_not_taken(start, tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))

    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            before = templates()
            (site / "new.py").write_text("there = True")
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert kernel.km.provisioner.run_id != run_id
            assert templates()[-1] not in before
            assert await kernel.run("import new; print(new.there)") == "True"

    asyncio.run(scenario())


def test_a_working_directory_that_has_gone_is_named(start, tmp_path):
    gone = tmp_path / "gone"

    async def scenario() -> None:
        async with start():
            await one_waits()
            with pytest.raises(StartFailed, match=re.escape(str(gone))):
                async with start(launch={"cwd": str(gone)}):
                    pass

    asyncio.run(scenario())


def test_a_kernel_with_other_arguments_does_not_take_it(start, write_kernelspec):
    argv = [sys.executable, "-m", "snakepit_kernel.kernel", "-f", "{connection_file}"]
    provisioner = {"provisioner_name": "snakepit-provisioner", "config": {"tag_command": True}}
    write_kernelspec(
        "other",
        [*argv, "--IPKernelApp.exec_lines=x = 6 * 7"],
        metadata={"kernel_provisioner": provisioner},
    )

    async def scenario() -> None:
        async with start():
            run_id = await one_waits()
            async with start(kernel_name="other") as kernel:
                assert await kernel.run("print(x)") == "42"
                assert kernel.km.provisioner.run_id != run_id

    asyncio.run(scenario())


def test_close_ends_all_that_wait(start, living):
    async def scenario() -> None:
        async with start():
            await one_waits()
            standby_kernels.close()
            assert waiting() == []
        assert [str(item) for item in living()] == []
        standby_kernels.close()

    asyncio.run(scenario())


def test_managers_without_a_loop_of_their_own_take_it_too(living):
    km = KernelManager(kernel_name="snakepit", config=CONFIG)
    km.start_kernel()
    try:
        run_id = asyncio.run(one_waits())
        km.restart_kernel(now=True)
        assert km.provisioner.run_id == run_id
        kc = km.client()
        kc.start_channels()
        kc.kernel_info(reply=True, timeout=SOON)
        kc.stop_channels()
    finally:
        km.shutdown_kernel(now=True)
        km.context.destroy(linger=0)


OWNER = """
import sys
from jupyter_client.manager import AsyncKernelManager, KernelManager
km = KernelManager(kernel_name="snakepit")
km.start_kernel()
print("started", flush=True)
sys.stdin.readline()
if sys.argv[1] == "polite":
    km.shutdown_kernel()
"""


@pytest.mark.parametrize("end", ["polite", "exit", "kill"])
def test_it_ends_with_its_owner(living, end):
    environment = {**os.environ, "SNAKEPIT_STANDBY": "2"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, end], stdin=pipe, stdout=pipe, env=environment
    ) as owner:
        assert owner.stdout.readline() == b"started\n"
        until = time.monotonic() + SOON
        while len(waiting()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(waiting()) == 2
        owner.kill() if end == "kill" else owner.stdin.close()
        assert owner.wait(20) == (-9 if end == "kill" else 0)
    assert [str(item) for item in living() if not item.wait_gone(5.0)] == []
    if end != "kill":
        assert waiting() == []


def test_a_number_that_is_none_is_named_and_ignored(monkeypatch, caplog):
    from snakepit_kernel.provisioner import SnakepitProvisioner

    monkeypatch.setenv("SNAKEPIT_STANDBY", "many")
    assert SnakepitProvisioner().standby == 1
    assert "SNAKEPIT_STANDBY must be a whole number, not 'many'" in caplog.text


def test_one_whose_start_was_cancelled_is_gone_and_the_next_start_is_served(start, monkeypatch):
    async def scenario() -> None:
        async with start():
            run_id = await one_waits()

            async def reason_not_to_fork(_: Template) -> str:
                raise asyncio.CancelledError

            with monkeypatch.context() as patched:
                patched.setattr(Template, "reason_not_to_fork", reason_not_to_fork)
                with pytest.raises(asyncio.CancelledError):
                    await AsyncKernelManager(kernel_name="snakepit", config=CONFIG).start_kernel()
            assert run_id not in {run.run_id for run in Registry().runs()}
            async with start() as kernel:
                assert kernel.km.provisioner.run_id != run_id

    asyncio.run(scenario())


def test_as_many_sorts_are_kept_ready_as_is_decent(start, monkeypatch):
    monkeypatch.setattr(standby_kernels, "MAX_STANDBY_KEYS", 2)

    async def scenario() -> None:
        ready = set()
        for number in range(4):
            before = set(waiting())
            environment = {**os.environ, "JUPYTER_OTHER": str(number)}
            async with start(launch={"env": environment}):
                until = time.monotonic() + SOON
                while not (new := set(waiting()) - before) and time.monotonic() < until:
                    await asyncio.sleep(0.02)
                ready = {*ready, *new} if number >= 2 else set()
        until = time.monotonic() + SOON
        while len(waiting()) > 2 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert set(waiting()) == ready

    asyncio.run(scenario())


def test_none_waits_for_a_command_that_could_not_take_it(start, write_kernelspec, monkeypatch):
    monkeypatch.setattr(standby_kernels, "REFILL_DELAY", 0.0)
    argv = [sys.executable, "-m", "snakepit_kernel.kernel"]
    provisioner = {"provisioner_name": "snakepit-provisioner", "config": {"tag_command": True}}
    write_kernelspec(
        "other",
        [*argv, "--ConnectionFileMixin.connection_file={connection_file}"],
        metadata={"kernel_provisioner": provisioner},
    )

    async def scenario() -> None:
        async with start(kernel_name="other") as kernel:
            assert await kernel.run("print(6 * 7)") == "42"
            await asyncio.sleep(1.0)
            assert waiting() == []

    asyncio.run(scenario())


def test_it_has_the_limits_and_the_umask_of_the_moment_it_is_taken(start):
    before = resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o027)
    os.umask(before[1])

    async def scenario() -> None:
        async with start() as kernel:
            run_id = await one_waits()
            resource.setrlimit(resource.RLIMIT_CORE, (0, before[0][1]))
            os.umask(0o027)
            await kernel.km.restart_kernel(now=True)
            assert kernel.km.provisioner.run_id == run_id
            await kernel.ready()
            code = "import os, resource; print(oct(os.umask(0)), resource.getrlimit(4)[0])"
            assert await kernel.run(code) == "0o27 0"

    try:
        asyncio.run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before[0])
        os.umask(before[1])


def test_its_guardian_outlives_a_request_that_comes_too_late():
    reading, writing = os.pipe()
    options = Options()
    options.channel = reading
    guardian = ForkedGuardian(options)
    guardian.assign(b"{}")  # the kernel has ended: there is no link
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_second_close_after_ctrl_c_waits_until_none_is_left(start, is_busy):
    async def scenario() -> None:
        async with start():
            await one_waits()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    asyncio.run(scenario())
    before = signal.signal(signal.SIGALRM, interrupt)
    if is_busy:  # then the second end is there before the first has begun
        standby_kernels._standby_kernels._loop_thread.soon(time.sleep, 0.5)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        with pytest.raises(KeyboardInterrupt):
            standby_kernels.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    again = threading.Thread(target=standby_kernels.close, daemon=True)
    again.start()
    again.join(SOON)

    assert not again.is_alive()
    assert waiting() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "snakepit-standby"]
