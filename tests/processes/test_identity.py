"""Who a process is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from snakepit_kernel.processes.identity import (
    ProcessIdentity,
    boot_id,
    living_descendants,
    read_command,
    read_status,
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def zombie() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield pid
    os.waitpid(pid, 0)


def recycled(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    """An identity from before: the same pid, of a process that started earlier."""
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    return ProcessIdentity(identity.pid, identity.start_time - 1)


def test_a_living_process_has_an_identity_that_is_alive(child):
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    assert identity.pid == child.pid
    assert identity.is_alive()


def test_a_pid_that_nobody_has_gives_no_identity(child):
    child.kill()
    child.wait()
    assert ProcessIdentity.of(child.pid) is None


def test_a_zombie_is_dead(zombie):
    status = read_status(zombie)
    assert status is not None
    assert status.is_dead
    assert ProcessIdentity.of(zombie) is None
    assert not ProcessIdentity(zombie, status.start_time).is_alive()
    assert zombie not in {status.pid for status in living_descendants(os.getpid())}


def test_a_recycled_pid_is_not_alive_and_gives_no_pidfd(child):
    assert not recycled(child).is_alive()
    assert recycled(child).open() is None


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_signal_never_reaches_a_process_that_got_the_pid_later(signum):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as innocent:
        assert recycled(innocent).signal(signum) is False
        output, _ = innocent.communicate(b"alive", timeout=5)
    assert output == b"alive"
    assert innocent.returncode == 0


def test_a_signal_reaches_the_process_it_is_meant_for(child):
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    assert identity.signal(signal.SIGTERM) is True
    assert child.wait() == -signal.SIGTERM
    assert identity.signal(signal.SIGTERM) is False


def test_a_pidfd_becomes_readable_when_the_process_ends(child):
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    pidfd = identity.open()
    assert pidfd is not None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(0) == []

    child.kill()

    assert poll.poll(5000)
    os.close(pidfd)


def test_an_identity_survives_being_written_and_read(child):
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    read = ProcessIdentity.parse(str(identity))
    assert read == identity
    assert hash(read) == hash(identity)
    assert read != ProcessIdentity(identity.pid, identity.start_time + 1)
    assert identity != str(identity)
    assert repr(identity) == f"ProcessIdentity(pid={child.pid}, start_time={identity.start_time})"


@pytest.mark.parametrize("text", ["", "1", "a:b", "1:", ":1"])
def test_a_text_that_is_no_identity_is_refused(text):
    with pytest.raises(ValueError, match="invalid literal"):
        ProcessIdentity.parse(text)


def test_a_process_whose_name_holds_parentheses_and_spaces_is_read(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        status = read_status(process.pid)
        process.kill()
    assert status is not None
    assert status.parent == os.getpid()
    assert status.state in "RSD"


def test_a_command_line_is_read_on_one_printable_line():
    code = "echo ready; read line # tab\there\nnew line"
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", code, "ä"], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        command = read_command(process.pid)
        process.kill()
    assert command == "sh -c echo ready; read line # tab\\there\\nnew line ä"


def test_the_command_line_of_a_process_that_has_none_is_a_question_mark(zombie):
    assert read_command(zombie) == "?"


def test_descendants_are_found_parents_first_and_orphans_with_them():
    """This process is a subreaper, so an orphan falls to it."""
    script = "sleep 600 & echo $!; (setsid sleep 600 </dev/null & echo $!); exec sleep 600"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        child, orphan = int(shell.stdout.readline()), int(shell.stdout.readline())
        found = [status.pid for status in living_descendants(os.getpid())]
        for pid in (child, orphan, shell.pid):
            os.kill(pid, signal.SIGKILL)
    assert found.index(shell.pid) < found.index(child)
    assert orphan in found


def test_the_boot_has_an_id():
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()
