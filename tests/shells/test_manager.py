"""The thread that drives shells: it ends, and starts again with the next of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snakepit_kernel.errors import ShellClosed
from snakepit_kernel.shells.manager import manager


@pytest.fixture(scope="module")
def running_manager() -> None:
    """It starts and ends with each test here."""


@pytest.fixture(autouse=True)
def ended_manager(nothing_is_left_behind: object) -> Iterator[None]:
    yield
    manager.close()


def test_a_shell_whose_owner_has_ended_is_closed(session):
    shell = session.shell
    shell.run("true")

    manager.close()

    with pytest.raises(ShellClosed, match="its process ends"):
        shell.run("true")
    with pytest.raises(ShellClosed):
        list(shell.stream("true"))
    shell.close()
    assert not shell.interrupt()
    assert session.shell.run("echo again").stdout == "again\n"


def test_what_the_last_command_did_is_kept_when_the_shell_is_closed(session):
    session.shell.run("x=last")
    session.shell.close()

    assert session.shell.run("echo $x").stdout == "last\n"
    session.shell.run("x=later; sleep 0")
    manager.close()
    assert session.shell.run("echo $x").stdout == "later\n"


def test_processes_that_have_ended_are_known_until_there_are_many(session, monkeypatch):
    monkeypatch.setattr("snakepit_kernel.shells.manager.MAX_ENDED", 3)
    processes = [session.processes.start(f"exit {number}") for number in range(5)]
    for process in processes:
        process.wait(10)
    last = session.processes.start("sleep 60")
    while len(session.processes.list()) > 4:
        pass

    assert last.id in [each.id for each in session.processes.list()]
    assert [process.returncode for process in processes] == [0, 1, 2, 3, 4]
    assert len([each for each in processes if each._folder.exists()]) == 3
    last.kill()


def test_a_thread_that_cannot_be_started_is_an_error_and_the_next_start_works(session, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("snakepit_kernel.shells.manager.LoopThread.start", _refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            session.shell.run("true")

    assert session.shell.run("echo again").stdout == "again\n"


def _refuse(_: object) -> None:
    raise RuntimeError("can't start new thread")
