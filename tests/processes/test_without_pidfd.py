"""Machines and builds of Python that have no pidfds: everything holds, with a narrow window."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from snakepit_kernel.processes import pidfd
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.waiting import ended, exit_descriptor

from .conftest import PRELUDE


def run(code: str, *prefix: str) -> str:
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def on_such_a_machine(refusing: Callable[..., list[str]]) -> list[str]:
    """Give the beginning of a command that runs on Linux as it was before 5.3."""
    return refusing(pidfd_open=errno.ENOSYS, pidfd_send_signal=errno.ENOSYS)


@pytest.fixture
def without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process take the way of such a machine."""
    monkeypatch.setattr(pidfd, "_possible", False)


def test_a_python_that_was_built_without_the_calls_makes_them_by_their_numbers():
    said = run("""
import _signal
del os.pidfd_open, _signal.pidfd_send_signal
from snakepit_kernel.processes import pidfd
from snakepit_kernel.processes.identity import ProcessIdentity
child = subprocess.Popen(["sleep", "600"])
say(pidfd.is_possible(), ProcessIdentity.of(child.pid).signal(signal.SIGTERM), child.wait())
try:
    pidfd.open_pidfd(child.pid)
except ProcessLookupError:
    say("gone")
descriptor = pidfd.open_pidfd(1)
say(os.readlink(f"/proc/self/fd/{descriptor}"), os.get_inheritable(descriptor))
""")
    assert said.split() == ["True", "True", "-15", "gone", "anon_inode:[pidfd]", "False"]


def test_a_signal_reaches_the_process_it_is_meant_for_and_none_that_got_its_pid(without_pidfds):
    with subprocess.Popen(["sleep", "600"]) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        earlier = ProcessIdentity(identity.pid, identity.start_time - 1)
        assert earlier.signal(signal.SIGKILL) is False
        assert child.poll() is None
        assert identity.signal(signal.SIGTERM) is True
    assert child.returncode == -signal.SIGTERM
    assert identity.signal(signal.SIGTERM) is False


def test_the_end_of_a_process_is_noticed(without_pidfds):
    with subprocess.Popen(["sleep", "600"]) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        descriptors = [exit_descriptor(identity), exit_descriptor(identity)]
        poll = select.poll()
        for descriptor in descriptors:
            assert descriptor is not None
            poll.register(descriptor, select.POLLIN)
        assert poll.poll(100) == []
        assert not asyncio.run(ended(identity, 0.05))

        child.kill()

        assert poll.poll(5000)
        assert asyncio.run(ended(identity))
        assert exit_descriptor(identity) is None
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_thread_that_looks_ends_when_nobody_waits_any_more(without_pidfds):
    def lookouts() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "snakepit-lookout"]

    with subprocess.Popen(["sleep", "600"]) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        descriptor = exit_descriptor(identity)
        assert descriptor is not None
        (spin_wait,) = lookouts()
        os.close(descriptor)
        spin_wait.join(5)
        assert lookouts() == []
        child.kill()


def test_a_pool_and_its_end_work_on_a_machine_without_them(on_such_a_machine):
    said = run(
        """
from snakepit_kernel import Pool, WorkerDied
from snakepit_kernel.processes import pidfd
with Pool(2, grace=0.5) as pool:
    say(pidfd.is_possible())
    try:
        pool.submit(os._exit, 3).result(timeout=20)
    except WorkerDied:
        say("died")
    say(pool.submit(abs, -3).result(timeout=20))
    pool.run("import subprocess; subprocess.Popen(['sh', '-c', 'trap \\"\\" TERM; sleep 600'])")
    workers = [worker.pid for worker in pool.status().workers]
say(any(os.path.exists(f"/proc/{pid}") for pid in workers))
""",
        *on_such_a_machine,
    )
    assert said.split() == ["False", "died", "3", "False"]


def test_the_owners_death_is_noticed_there_also_when_a_stray_child_holds_its_channel(
    start_owner, lines, process_of, on_such_a_machine
):
    owner = start_owner(
        """
        process = start("say('child', os.getpid()); time.sleep(600)")
        channel = process._channel.fileno()
        os.set_inheritable(channel, True)
        stray = subprocess.Popen(["sleep", "600"], close_fds=False)
        say("stray", stray.pid)
        time.sleep(600)
        """,
        prefix=on_such_a_machine,
    )
    pids = dict(lines.read().split() for _ in range(2))
    child, stray = process_of(int(pids["child"])), process_of(int(pids["stray"]))

    owner.kill()

    assert child.wait_gone(5)
    assert stray.is_alive
    stray.kill()


def test_the_doctor_says_so(on_such_a_machine):
    said = run(
        "from snakepit_kernel.cli.installation_checks import check_forking\n"
        "(finding,) = check_forking()\n"
        "say(finding.level, finding.text)",
        *on_such_a_machine,
    )
    assert said.startswith("hint possible, but there are no pidfds: ")
