"""The provisioner: whatever happens to a kernel or its manager, nothing is left."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager

from snakepit_kernel.errors import StartFailed
from snakepit_kernel.ids import RUN_ID_OPTION, RUN_ID_VARIABLE, is_run_id
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.run_registry import Registry

SURVIVORS = Path(__file__).resolve().parents[2] / "shared" / "tools" / "survivors.py"

CHILDREN = """
import multiprocessing, os, signal, subprocess, time
children = [
    subprocess.Popen(['sleep', '600']),
    subprocess.Popen(['sleep', '600'], start_new_session=True),
    subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True),
]
def stay():
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
process = multiprocessing.get_context('fork').Process(target=stay)
process.start()
subprocess.run(['sh', '-c', 'setsid nohup sleep 600 >/dev/null 2>&1 </dev/null &'])
"""

SOON = 5.0


def tag_of(pid: int) -> tuple[str, str]:
    """The run id in a process's environment, and that on its command line."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    command = re.split(rb"[\0 ]", Path(f"/proc/{pid}/cmdline").read_bytes())
    prefix, option = f"{RUN_ID_VARIABLE}=".encode(), RUN_ID_OPTION.encode()
    return (
        next((item[len(prefix) :].decode() for item in environ if item.startswith(prefix)), ""),
        next((item[len(option) :].decode() for item in command if item.startswith(option)), ""),
    )


# -- runs ----------------------------------------------------------------------------------------


def test_each_launch_is_a_run_of_its_own_in_environment_and_on_the_command_line(
    start_kernel, monkeypatch
):
    monkeypatch.setenv(RUN_ID_VARIABLE, "a" * 13)  # the server is itself part of a run

    async def scenario() -> None:
        async with start_kernel() as kernel:
            first = tag_of(kernel.pid)
            assert first == (kernel.km.provisioner.run_id,) * 2
            assert is_run_id(first[0])
            assert first[0] != "a" * 13
            inherited = "import subprocess; print(subprocess.getoutput('echo $SNAKEPIT_RUN_ID'))"
            assert await kernel.run(inherited) == first[0]
            (run,) = Registry().runs()
            assert (run.run_id, run.parent) == (first[0], "a" * 13)
            assert run.process is not None
            assert run.process.pid == kernel.pid

            await kernel.km.restart_kernel()
            await kernel.ready()

            second = tag_of(kernel.pid)
            assert second == (kernel.km.provisioner.run_id,) * 2
            assert second != first
            assert [run.run_id for run in Registry().runs()] == [second[0]]
        assert Registry().runs() == []

    asyncio.run(scenario())


def test_a_user_given_run_id_in_the_environment_is_overwritten(start_kernel):
    async def scenario() -> None:
        env = {**os.environ, RUN_ID_VARIABLE: "b" * 13}
        async with start_kernel(launch={"env": env}) as kernel:
            assert tag_of(kernel.pid)[0] == kernel.km.provisioner.run_id

    asyncio.run(scenario())


# -- restarts and shutdowns ----------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
def test_a_restart_leaves_no_child_and_gives_a_fresh_kernel_on_the_same_ports(
    start_kernel, living, now
):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(CHILDREN)
            before = {item.pid for item in living()}
            assert len(before) >= 7
            ports = kernel.km.ports

            await kernel.km.restart_kernel(now=now)

            assert before & {item.pid for item in living()} == set()
            await kernel.ready()
            assert kernel.km.ports == ports
            assert await kernel.run("print('children' in globals())") == "False"

    asyncio.run(scenario())


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
def test_a_shutdown_leaves_nothing_when_it_returns(start_kernel, living, now):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(CHILDREN)
            await kernel.km.shutdown_kernel(now=now)
            assert list(map(str, living())) == []
            assert not await kernel.km.is_alive()
            assert kernel.km.provisioner.last_report.verified

    asyncio.run(scenario())


def test_a_graceful_shutdown_of_an_idle_kernel_is_quick(start_kernel):
    async def scenario() -> float:
        async with start_kernel() as kernel:
            await kernel.run("1")
            started = time.monotonic()
            await kernel.km.shutdown_kernel()
            return time.monotonic() - started

    assert asyncio.run(scenario()) < 1.5


def test_a_wedged_kernel_is_shut_down_all_the_same(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel(shutdown_wait_time=1.0) as kernel:
            wedge = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15]); print('in')"
            await kernel.run(wedge)
            kernel.kc.execute("while True: pass")
            await kernel.km.shutdown_kernel()
            assert list(map(str, living())) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "end", ["import os; os._exit(3)", "import os; os.abort()", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_kernel_that_ends_by_itself_takes_its_children_with_it(start_kernel, living, end):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))")
            await kernel.run(CHILDREN)
            children = living()
            kernel.kc.execute(end)
            waits = [asyncio.to_thread(item.wait_gone, SOON) for item in children]
            assert all(await asyncio.gather(*waits))
            assert await kernel.km.provisioner.poll() is not None

    asyncio.run(scenario())


def test_a_kernel_that_replaces_itself_takes_its_children_with_it(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(CHILDREN)
            kernel.kc.execute("import os; os.execv('/bin/sleep', ['sleep', '600'])")
            await kernel.km.shutdown_kernel(now=True)
            assert list(map(str, living())) == []

    asyncio.run(scenario())


def test_cleanup_is_harmless_twice_and_without_a_kill(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            provisioner = kernel.km.provisioner
            await provisioner.cleanup(restart=False)
            assert list(map(str, living())) == []
            await provisioner.cleanup(restart=False)
            await provisioner.cleanup(restart=True)
            assert await provisioner.poll() == 0
            assert await provisioner.wait() == 0
            await provisioner.kill()
            await provisioner.terminate()
            await provisioner.send_signal(signal.SIGINT)

    asyncio.run(scenario())


def test_an_autorestarted_kernel_works_and_the_dead_one_left_nothing(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel(manager_class=AsyncIOLoopKernelManager, autorestart=True) as kernel:
            restarted = asyncio.Event()
            kernel.km.add_restart_callback(restarted.set)
            await kernel.run(CHILDREN)
            before = {item.pid for item in living()}

            os.kill(kernel.pid, signal.SIGKILL)
            await asyncio.wait_for(restarted.wait(), 20)

            while before & {item.pid for item in living()}:
                await asyncio.sleep(0.05)  # the callback comes before the launch
            await kernel.ready()
            assert await kernel.run("print('children' in globals())") == "False"

    asyncio.run(scenario())


# -- failing starts ------------------------------------------------------------------------------


@pytest.fixture
def other_spec(write_kernelspec) -> Any:
    """Write another kernelspec under our provisioner; give its name."""

    def write(argv: list[str], **spec: Any) -> str:
        metadata = {"kernel_provisioner": {"provisioner_name": "snakepit-provisioner"}}
        return write_kernelspec("other", argv, **{"metadata": metadata, **spec}).name

    return write


def test_a_kernel_whose_interpreter_is_missing_is_named_and_leaves_nothing(other_spec, living):
    name = other_spec(["/nowhere/python", "-f", "{connection_file}"])

    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name=name)
        with pytest.raises(StartFailed, match="/nowhere/python"):
            await km.start_kernel()
        await km.cleanup_resources()

    asyncio.run(scenario())
    assert [item for item in living() if not item.wait_gone(SOON)] == []
    assert Registry().runs() == []


def test_a_kernel_of_another_implementation_runs_under_guard(other_spec, start_kernel, living):
    """The stock kernel does not know our command line option, and is not given it."""
    name = other_spec([sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    async def scenario() -> None:
        async with start_kernel(name) as kernel:
            assert tag_of(kernel.pid) == (kernel.km.provisioner.run_id, "")
            await kernel.run(CHILDREN)
            await kernel.km.restart_kernel()
            await kernel.ready()
            await kernel.run(CHILDREN)
        assert list(map(str, living())) == []

    asyncio.run(scenario())


def test_a_start_that_fails_after_the_launch_leaves_nothing_when_it_is_cleaned_up(living):
    class Manager(AsyncKernelManager):
        def _reconcile_connection_info(self, info: Any) -> None:
            raise ValueError("connection file mismatch")

    async def scenario() -> None:
        km = Manager(kernel_name="snakepit")
        with pytest.raises(ValueError, match="mismatch"):
            await km.start_kernel()
        await km.cleanup_resources()

    asyncio.run(scenario())
    assert list(map(str, living())) == []


def test_a_manager_that_is_forgotten_after_a_failed_start_leaves_nothing(living):
    """jupyter_client calls nothing more; what ends the kernel is that nobody holds it any more."""
    code = """
import asyncio, gc
from jupyter_client.manager import AsyncKernelManager
class Manager(AsyncKernelManager):
    def _reconcile_connection_info(self, info):
        raise ValueError
async def main():
    km = Manager(kernel_name="snakepit")
    try:
        await km.start_kernel()
    except ValueError:
        pass
    km.cleanup_connection_file()
asyncio.run(main())
gc.collect()
print("ready", flush=True)
input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        left = [item for item in living() if item.pid != owner.pid]
        assert [str(item) for item in left if not item.wait_gone(SOON)] == []


@pytest.mark.parametrize("argument", [{"nonsense": 1}, {"cwd": "/nowhere"}])
def test_a_start_with_a_wrong_argument_leaves_nothing_in_the_registry(argument, living):
    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name="snakepit")
        with pytest.raises((TypeError, StartFailed)):
            await km.start_kernel(**argument)
        await km.cleanup_resources()

    asyncio.run(scenario())
    assert living() == []
    assert Registry().runs() == []


def test_a_registry_that_cannot_be_written_does_not_stop_a_start(
    start_kernel, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNAKEPIT_DATA_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("snakepit_kernel.provisioner.SnakepitProvisioner.registry", Registry())

    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert await kernel.run("print(6 * 7)") == "42"
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()

    asyncio.run(scenario())
    warnings = [item for item in caplog.records if item.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "registry of runs cannot be used" in warnings[0].getMessage()


# -- what start_kernel is given ------------------------------------------------------------------


def test_the_arguments_of_start_kernel_reach_the_kernel(start_kernel, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    (tmp_path / "in").write_text("typed")

    async def scenario() -> None:
        with out.open("wb") as stdout, err.open("wb") as stderr, (tmp_path / "in").open() as stdin:
            launch = {
                "stdin": stdin,
                "stdout": stdout,
                "stderr": stderr,
                "cwd": str(tmp_path),
                "env": {**os.environ, "COLOUR": "green"},
            }
            async with start_kernel(launch=launch) as kernel:
                code = """
                import os, sys
                os.write(1, b'to out'); os.write(2, b'to err')
                print(os.getcwd(), os.environ['COLOUR'], os.read(0, 9).decode())
                """
                assert await kernel.run(code) == f"{tmp_path} green typed"
                await kernel.km.restart_kernel(now=True)
                await kernel.ready()
                assert (
                    await kernel.run("import os; print(os.getcwd(), os.environ['COLOUR'])")
                    == f"{tmp_path} green"
                )

    asyncio.run(scenario())
    assert b"to out" in out.read_bytes()
    assert b"to err" in err.read_bytes()


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_killed_manager_leaves_no_process_and_no_file(living, transport, kernel_owner):
    with kernel_owner(CHILDREN, traits={"transport": transport}) as owner:
        owner.wait_ready()
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    assert [path for path in runtime.rglob("*") if path.is_file()] == []


SHARED_MEMORY = """
import multiprocessing.shared_memory, subprocess, sys
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1000)
child = subprocess.Popen([sys.executable, '-c', 'from multiprocessing import shared_memory as s;'
    's.SharedMemory(create=True, size=1000); print(flush=True); import time; time.sleep(600)'],
    stdout=subprocess.PIPE)
child.stdout.readline()
print(memory.name)
"""


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
def test_shared_memory_of_a_kernel_and_of_its_children_goes_with_a_restart(start_kernel, now):
    async def scenario() -> None:
        before = shared_memory()
        async with start_kernel() as kernel:
            await kernel.run(SHARED_MEMORY)
            assert len(shared_memory() - before) == 2
            await kernel.km.restart_kernel(now=now)
            assert shared_memory() == before

    asyncio.run(scenario())


def test_shared_memory_goes_when_the_manager_is_killed(living, kernel_owner):
    before = shared_memory()
    with kernel_owner(SHARED_MEMORY) as owner:
        owner.wait_ready()
        assert len(shared_memory() - before) == 2
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []
    assert shared_memory() == before


def test_a_manager_and_a_guardian_that_are_stopped_and_killed_leave_nothing(
    living, kernel_owner, start_and_shut_down
):
    """A stopped guardian does not see that its owner died, until somebody continues it."""
    with kernel_owner(CHILDREN) as owner:
        _, guardian = owner.wait_ready()
        os.kill(guardian, signal.SIGSTOP)
        owner.kill()
    assert len(living()) >= 7

    start_and_shut_down()

    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []
    start_and_shut_down()  # the first one could not know yet
    assert Registry().runs() == []


def test_the_next_start_sweeps_what_a_killed_guardian_and_owner_left(
    living, kernel_owner, start_and_shut_down
):
    code = """
import subprocess
subprocess.Popen(['sleep', '600'])
subprocess.Popen(['sleep', '600'], start_new_session=True)
below = "sleep 600 & env -i /bin/sleep 600 & setsid env -i /bin/sleep 600 & wait"
subprocess.Popen(['sh', '-c', below], start_new_session=True)
unmarked = "ulimit -m unlimited; env -i /bin/sleep 600 & wait"
subprocess.Popen(['sh', '-c', unmarked], start_new_session=True)
subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True)
import time; time.sleep(0.2)
"""
    with kernel_owner(code) as owner:
        kernel, guardian = owner.wait_ready()
        template = {child.pid for child in psutil.Process(owner.pid).children()}  # dies with it
        os.kill(owner.pid, signal.SIGSTOP)  # it must not see the guardian die
        os.kill(guardian, signal.SIGKILL)
        owner.kill()
    left = [item for item in living() if item.pid not in {kernel, guardian, *template}]
    assert len(left) == 9

    start_and_shut_down()

    assert [str(item) for item in left if item.is_alive] == []
    assert Registry().runs() == []
    assert list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("kernel-*.json")) == []


def test_a_killed_guardian_costs_the_kernel_and_its_children_are_swept(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(
                "import subprocess\n"
                "for session in (False, True):\n"
                "    subprocess.Popen(['sleep', '600'], start_new_session=session)\n"
                "subprocess.Popen(['/bin/sleep', '600'], env={})"
            )
            os.kill(kernel.km.provisioner.guarded.guardian.pid, signal.SIGKILL)
            await kernel.km.shutdown_kernel(now=True)
            assert list(map(str, living())) == []

    asyncio.run(scenario())


def test_a_killed_guardian_costs_the_pool_in_the_kernel_too(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(
                "import subprocess, snakepit_kernel\n"
                "pool = snakepit_kernel.Pool(1)\n"
                "def deaf():\n"
                "    import subprocess\n"
                "    subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 600; sleep 600'])\n"
                "pool.submit(deaf).result()"
            )
            os.kill(kernel.km.provisioner.guarded.guardian.pid, signal.SIGKILL)
            await kernel.km.shutdown_kernel(now=True)
            assert list(map(str, living())) == []

    asyncio.run(scenario())


def test_a_run_ends_though_its_runtime_directory_cannot_be_used_any_more(
    start_kernel, living, monkeypatch, tmp_path
):
    monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(tmp_path / "runtime"))

    async def scenario() -> None:
        async with start_kernel() as kernel:
            (tmp_path / "runtime").rmdir()
            (tmp_path / "runtime").touch()
            await kernel.km.shutdown_kernel(now=True)
            assert list(map(str, living())) == []
            assert Registry().runs() == []

    asyncio.run(scenario())


def test_a_guardian_that_is_held_by_a_child_ends_with_its_run(start_kernel, living, monkeypatch):
    monkeypatch.setattr("snakepit_kernel.processes.guarded_process.END_PATIENCE", 0.5)
    hold = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
until = time.monotonic() + 60
while time.monotonic() < until:
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(
                "import os, subprocess, sys\n"
                f"subprocess.Popen([sys.executable, '-c', {hold!r}, str(os.getppid())])\n"
                "subprocess.Popen(['sleep', '600'], start_new_session=True)"
            )
            await kernel.km.shutdown_kernel(now=True)
            assert list(map(str, living())) == []
            assert kernel.km.provisioner.last_report.verified
            assert Registry().runs() == []

    asyncio.run(scenario())


def test_a_row_whose_pids_belong_to_others_now_is_pruned_and_they_are_untouched(
    start_and_shut_down,
):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as innocent:
        registry = Registry()
        registry.reserve("c" * 13, label="old")
        with sqlite3.connect(registry.path) as connection:
            old = f"{innocent.pid}:1"
            connection.execute("UPDATE runs SET owner = ?, guardian = ?, process = ?", (old,) * 3)
        connection.close()

        start_and_shut_down()

        assert registry.runs() == []
        assert innocent.communicate(b"alive")[0] == b"alive"
        assert innocent.returncode == 0


def test_an_independent_kernel_survives_its_manager_and_is_ended_by_its_successor(
    living, kernel_owner, start_and_shut_down
):
    with kernel_owner("", launch={"independent": True}) as owner:
        kernel, guardian = owner.wait_ready()
        owner.kill()
    assert {item.pid for item in living()} >= {kernel, guardian}
    start_and_shut_down()  # which must not sweep it
    assert {item.pid for item in living()} >= {kernel, guardian}

    os.kill(guardian, signal.SIGTERM)

    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


# -- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["default", "relative", "long"])
def test_a_kernel_is_reached_over_ipc_wherever_its_manager_would_put_the_sockets(
    start_kernel, tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    traits: dict[str, Any] = {}
    if place == "relative":
        traits["ip"] = "here"
    elif place == "long":
        traits["connection_file"] = str(tmp_path / ("x" * 90) / "kernel.json")
        (tmp_path / ("x" * 90)).mkdir()

    async def scenario() -> None:
        (tmp_path / "elsewhere").mkdir()
        launch = {"cwd": str(tmp_path / "elsewhere")}
        async with start_kernel(transport="ipc", launch=launch, **traits) as kernel:
            assert await kernel.run("print(6 * 7)") == "42"
            sockets = [Path(f"{kernel.km.ip}-{port}") for port in kernel.km.ports]
            assert all(path.is_socket() for path in sockets)
            assert stat.S_IMODE(sockets[0].parent.stat().st_mode) & 0o077 == 0
            await kernel.run(CHILDREN)
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert await kernel.run("print(6 * 7)") == "42"
        assert not any(path.exists() for path in sockets)

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_an_encrypted_kernel_works_also_after_a_restart(start_kernel, transport):
    async def scenario() -> None:
        async with start_kernel(transport=transport, transport_encryption="required") as kernel:
            assert json.loads(Path(kernel.km.connection_file).read_text())["curve_publickey"]
            assert await kernel.run("print(6 * 7)") == "42"
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert await kernel.run("print(6 * 7)") == "42"

    asyncio.run(scenario())


def test_ports_are_free_when_a_shutdown_returns_though_a_fork_held_them(start_kernel):
    async def scenario() -> list[int]:
        async with start_kernel() as kernel:
            await kernel.run("import os, time\nif os.fork() == 0: time.sleep(600); os._exit(0)")
            ports = list(kernel.km.ports)
            await kernel.km.shutdown_kernel()
            return ports

    for port in asyncio.run(scenario()):
        with socket.create_server(("127.0.0.1", port)):
            pass


# -- several managers, other managers ------------------------------------------------------------


def test_two_managers_do_not_touch_each_others_kernels(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as one, start_kernel() as other:
            await one.run(CHILDREN)
            await other.run(CHILDREN + "\nkept = 1")
            await one.km.restart_kernel(now=True)
            await one.ready()
            await one.km.shutdown_kernel()
            alive = "print(kept, [child.poll() for child in children], process.is_alive())"
            assert await other.run(alive) == "1 [None, None, None] True"

    asyncio.run(scenario())


def test_two_owners_do_not_touch_each_others_kernels(process_of, kernel_owner, start_and_shut_down):
    code = "import os; child = os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '600')"
    with kernel_owner(code) as owner:
        kernel, guardian = owner.wait_ready()
        start_and_shut_down()
        assert process_of(kernel).is_alive
        assert process_of(guardian).is_alive
        owner.kill()


def test_an_interrupt_stops_the_cell_and_spares_a_child_of_the_kernel(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import subprocess, time; child = subprocess.Popen(['sleep', '600'])")
            kernel.kc.execute("print('in', flush=True); time.sleep(60)")
            while (await kernel.kc.get_iopub_msg(timeout=10))["msg_type"] != "stream":
                pass
            await kernel.km.interrupt_kernel()
            reply = await kernel.kc.get_shell_msg(timeout=10)
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            assert await kernel.run("print(child.poll())") == "None"

    asyncio.run(scenario())


def test_a_manager_without_an_event_loop_of_its_own_works_inside_a_running_one(living):
    """The synchronous manager then runs our coroutines in a thread with another loop."""

    async def scenario() -> None:
        km = KernelManager(kernel_name="snakepit")
        km.start_kernel()
        assert km.is_alive()
        km.restart_kernel(now=True)
        assert km.is_alive()
        km.interrupt_kernel()
        km.shutdown_kernel(now=True)
        assert not km.is_alive()

    asyncio.run(scenario())
    assert list(map(str, living())) == []


def test_a_blocking_manager_and_client_work(living):
    km = KernelManager(kernel_name="snakepit")
    km.start_kernel()
    kc = km.client()
    kc.start_channels()
    kc.wait_for_ready(timeout=30)
    reply = kc.execute_interactive("6 * 7", timeout=10, output_hook=lambda message: None)
    assert reply["content"]["status"] == "ok"
    km.restart_kernel()
    kc.wait_for_ready(timeout=30)
    kc.stop_channels()
    km.shutdown_kernel()
    assert list(map(str, living())) == []


def test_another_manager_can_see_and_kill_a_kernel_from_its_information(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(CHILDREN)
            info = json.loads(json.dumps(await kernel.km.provisioner.get_provisioner_info()))
            spec = KernelSpecManager().get_kernel_spec("snakepit")
            other = type(kernel.km.provisioner)(
                kernel_id=info["kernel_id"], kernel_spec=spec, parent=None
            )
            await other.load_provisioner_info(info)

            assert await other.poll() is None
            assert other.has_process
            assert other.connection_info == kernel.km.provisioner.connection_info
            assert json.dumps(await other.get_provisioner_info(), sort_keys=True) == json.dumps(
                info, sort_keys=True
            )

            await other.kill()
            assert list(map(str, living())) == []
            assert await other.poll() is not None
            await other.wait()
            await other.cleanup()

    asyncio.run(scenario())
    assert Registry().runs() == []


def test_another_manager_can_shut_a_kernel_down_whose_guardian_was_killed(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import subprocess; subprocess.Popen(['sleep', '600'])")
            info = json.loads(json.dumps(await kernel.km.provisioner.get_provisioner_info()))
            spec = KernelSpecManager().get_kernel_spec("snakepit")
            other = type(kernel.km.provisioner)(kernel_id="k", kernel_spec=spec, parent=None)
            await other.load_provisioner_info(info)
            os.kill(kernel.km.provisioner.guarded.guardian.pid, signal.SIGKILL)
            await other.kill()
            assert list(map(str, living())) == []

    asyncio.run(scenario())


# -- the probe -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SURVIVORS.exists(), reason="the probe lies beside the project only in CI")
def test_no_kind_of_child_survives_any_event_of_the_probe():
    events = "shutdown,restart,restart_now,kill_manager"
    kernels = Path(sys.prefix) / "share" / "jupyter"
    command = [sys.executable, SURVIVORS, "--kernel", "snakepit", "--jupyter-path", kernels]
    probe = subprocess.run(
        [*command, "--events", events, "--settle", "3", "--fail-on-survivors"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert probe.returncode == 0, probe.stdout + probe.stderr
    rows = [line for line in probe.stdout.splitlines() if "gone" in line]
    assert len(rows) == 4, probe.stdout + probe.stderr
    assert "error" not in probe.stdout
    assert "BROKEN" not in probe.stderr


@pytest.mark.parametrize("moment", ["aactivate", "ready"])
def test_a_start_that_is_cancelled_leaves_nothing(monkeypatch, moment):
    """Not even at the last moment: no process, run, descriptor or socket; see the fixture."""

    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name="snakepit")

        def sockets() -> list[str]:
            return [f"{km.ip}-{port}" for port in km.ports if os.path.exists(f"{km.ip}-{port}")]

        async def cancelled(*_: Any) -> None:
            while not sockets():
                await asyncio.sleep(0.001)  # it binds them in the midst of its start
            raise asyncio.CancelledError

        owner = Registry if moment == "aactivate" else GuardedProcess
        monkeypatch.setattr(owner, moment, cancelled)
        with pytest.raises(asyncio.CancelledError):
            await km.start_kernel()
        assert not km.provisioner.has_process
        assert sockets() == []
        km.cleanup_connection_file()
        km.context.destroy(linger=0)

    asyncio.run(scenario())
