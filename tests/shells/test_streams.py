"""Streams: chunks come as they are written, state stays, and a reader may leave at any time."""

from __future__ import annotations

import asyncio
import time
from itertools import islice

import pytest

from snakepit_kernel.errors import ShellClosed

READY_THEN_DEAF = "echo ready; trap '' TERM; while :; do sleep 1; done"


def test_a_stream_ends_with_the_result_of_its_command(shell):
    assert list(shell.stream("false")) == []
    assert shell.last.returncode == 1

    chunks = list(shell.stream("nonexistentcommand123"))
    assert {chunk.stream for chunk in chunks} == {"stderr"}
    assert shell.last.returncode == 127


def test_chunks_come_when_they_are_written(shell, tmp_path):
    loop = (
        f"for i in 1 2 3; do echo Chunk $i; until [ -e {tmp_path}/$i ]; do sleep 0.01; done; done"
    )
    seen = []
    for chunk in shell.stream(
        f"{loop}; printf part; until [ -e {tmp_path}/4 ]; do sleep 0.01; done"
    ):
        seen.append(chunk.text)
        (tmp_path / str(len(seen))).touch()  # the command goes on when it was read

    assert seen == ["Chunk 1\n", "Chunk 2\n", "Chunk 3\n", "part"]
    assert shell.last.ok


def test_the_state_stays_after_a_stream(shell):
    list(shell.stream("cd /usr; export A=1; f() { echo f$A; }; exit 3"))

    assert (shell.last.returncode, shell.last.restarted) == (3, True)
    assert shell.run("f; pwd").stdout == "f1\n/usr\n"


@pytest.mark.parametrize("command", ["echo ready; sleep 60", "yes", READY_THEN_DEAF])
def test_a_stream_that_is_left_ends_its_command(shell, living, command):
    shell.run("x=1")
    before = set(living())
    stream = shell.stream(command)
    next(stream)

    began = time.monotonic()
    stream.close()

    assert time.monotonic() - began < 2.5
    assert set(living()) - before == set()
    assert shell.run("echo $x").stdout == "1\n"


def test_a_stream_that_nobody_reads_does_not_run_ahead(shell):
    stream = shell.stream("yes")
    read = sum(len(chunk.data) for chunk in islice(stream, 3))
    written = shell._driver.command  # it waits now: its pipes are full
    assert written is not None
    time.sleep(0.2)  # nothing tells that nothing happens
    rest = sum(len(chunk.data) for chunk in islice(stream, 20))
    stream.close()

    assert read + rest > 0
    assert shell.last is None or not shell.last.ok


def test_a_slow_reader_gets_everything(shell):
    total = 0
    for number, chunk in enumerate(shell.stream("head -c 50000000 /dev/zero")):
        total += len(chunk.data)
        if number % 10 == 0:
            time.sleep(0.002)

    assert total == 50_000_000
    assert shell.last.stdout_total == total


def test_a_stream_of_an_event_loop_is_the_same(shell):
    async def read() -> list[str]:
        return [chunk.text async for chunk in shell.astream("echo a; echo b >&2; cd /usr; exit 4")]

    assert sorted(asyncio.run(read())) == ["a\n", "b\n"]
    assert (shell.last.returncode, shell.last.cwd) == (4, "/usr")


def test_a_stream_of_an_event_loop_that_is_left_ends_its_command(shell, living):
    async def leave() -> None:
        async for _ in shell.astream("echo ready; sleep 60"):
            break
        assert (await shell.arun("echo next")).stdout == "next\n"

    before = set(living())
    asyncio.run(leave())

    assert {p for p in set(living()) - before if "sleep" in str(p)} == set()


def test_a_cancelled_stream_ends_its_command(shell, living):
    async def cancel() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in shell.astream("echo ready; sleep 60"):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())

    assert not [process for process in living() if "sleep" in str(process)]
    assert shell.run("echo next").stdout == "next\n"


def test_a_stream_that_was_never_begun_runs_nothing(shell, tmp_path):
    shell.run("true")
    shell.stream(f"touch {tmp_path}/ran")
    shell.astream(f"touch {tmp_path}/ran")

    shell.run("true")
    assert list(tmp_path.iterdir()) == []


def test_output_that_came_before_the_shell_was_closed_is_not_lost(shell):
    stream = shell.stream("echo one; sleep 60")

    assert next(stream).text == "one\n"
    shell.close()

    with pytest.raises(ShellClosed):
        next(stream)


def test_a_cancelled_stream_does_not_take_output_of_the_next_command(shell):
    for _ in range(20):
        stream = shell.stream("echo old; sleep 60")
        next(stream)
        stream.close()
        assert shell.run("echo new").stdout == "new\n"
