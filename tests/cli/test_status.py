"""`snakepit status`: live pools and runs, seen from another process."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel.cli.published_pools import UnreadablePool, read_pool
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.pool.status import PoolStatus, WorkerStatus
from snakepit_kernel.printable import duration
from snakepit_kernel.processes.identity import ProcessIdentity, boot_id

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def publish(runtime: Path, owner: ProcessIdentity | None = None, **fields: Any) -> Path:
    """Write what a pool publishes, as if this process or another one owned it; give its folder."""
    owner = owner or ProcessIdentity.of(os.getpid())
    assert owner is not None
    folder = runtime / new_run_id() / "shop-abcdef"
    folder.mkdir(mode=0o700, parents=True)
    (folder / "owner").write_text(f"{owner} {boot_id()}")
    status = PoolStatus(owner_pid=owner.pid, adapter="none", **fields)
    (folder / "pool.json").write_text(json.dumps(status.as_json()))
    return folder


def without_kept(text: str) -> str:
    """What it says but for processes that were kept on purpose: they may be this machine's."""
    return text.partition("kept on purpose\n")[0]


def test_without_pools_it_says_so_and_succeeds(snakepit: Run) -> None:
    done = snakepit("status")

    assert (done.returncode, without_kept(done.stdout), done.stderr) == (0, "no live pools\n", "")


def test_a_live_pool_is_shown_with_its_workers(
    snakepit: Run, pool_owner: subprocess.Popen[str]
) -> None:
    done = snakepit("status")

    lines = done.stdout.splitlines()
    assert lines[0] == f"pool shop of process {pool_owner.pid}: adapter none"
    assert lines[1].split() == ["worker", "pid", "state", "since", "calls", "memory", "running"]
    assert [line.split()[0] for line in lines[2:4]] == ["shop-1.1", "shop-2.1"]
    assert lines[2].split()[2] == "ready"
    assert done.returncode == 0


def test_the_json_of_a_live_pool_names_living_processes(
    snakepit: Run, pool_owner: subprocess.Popen[str], process_of: Any
) -> None:
    data = json.loads(snakepit("status", "--json").stdout)

    (pool,) = data["pools"]
    assert (pool["name"], pool["owner_pid"]) == ("shop", pool_owner.pid)
    assert len(pool["workers"]) == 2
    for worker in pool["workers"]:
        assert process_of(worker["pid"]).is_alive
        assert worker["memory_bytes"] > 2**20
    assert Path(pool["folder"], "pool.json").exists()


def test_live_runs_are_listed_below_the_pools(
    snakepit: Run, pool_owner: subprocess.Popen[str], process_of: Any
) -> None:
    data = json.loads(snakepit("status", "--json").stdout)
    text = snakepit("status").stdout

    workers = {worker["run_id"]: worker["pid"] for worker in data["pools"][0]["workers"]}
    assert {run["run_id"]: run["pid"] for run in data["runs"]} == workers
    below = text.partition("live runs\n")[2]
    for run in data["runs"]:
        assert run["owner_pid"] == pool_owner.pid
        assert run["state"] == "running"
        assert process_of(run["guardian_pid"]).is_alive
        (line,) = [line for line in below.splitlines() if run["run_id"] in line]
        assert line.split()[:5] == [
            run["label"],
            run["run_id"],
            str(run["pid"]),
            str(run["guardian_pid"]),
            "running",
        ]


def test_a_pool_whose_owner_was_killed_is_not_shown(
    snakepit: Run, pool_owner: subprocess.Popen[str], process_of: Any
) -> None:
    shown = json.loads(snakepit("status", "--json").stdout)
    guardians = [process_of(run["guardian_pid"]) for run in shown["runs"]]
    pool_owner.kill()
    pool_owner.wait()
    assert all(guardian.wait_gone() for guardian in guardians)

    done = snakepit("status", "--json")

    assert len(shown["pools"]) == 1
    now = json.loads(done.stdout)
    assert isinstance(now.pop("kept"), list)
    assert now == {"pools": [], "runs": [], "processes": [], "bookings": []}


def test_what_a_dead_owner_published_is_not_shown(snakepit: Run, place: Any) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        try:
            publish(place.runtime, ProcessIdentity.of(owner.pid), name="shop")
            before = snakepit("status").stdout
        finally:
            owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        as_zombie = snakepit("status").stdout
    after = snakepit("status").stdout

    assert "pool shop" in before
    assert without_kept(as_zombie) == "no live pools\n"
    assert without_kept(after) == "no live pools\n"


def test_a_process_that_got_the_pid_of_a_dead_owner_is_not_taken_for_it(
    snakepit: Run, place: Any
) -> None:
    ours = ProcessIdentity.of(os.getpid())
    assert ours is not None
    publish(place.runtime, ProcessIdentity(ours.pid, ours.start_time - 1), name="shop")

    assert without_kept(snakepit("status").stdout) == "no live pools\n"


def test_the_age_of_a_state_grows_with_the_age_of_the_file(snakepit: Run, place: Any) -> None:
    worker = WorkerStatus(
        name="shop-1.1",
        pid=None,
        state="ready",
        seconds=5.0,
        calls=0,
        memory_bytes=7,
        running=None,
        run_id="",
    )
    folder = publish(place.runtime, name="shop", workers=[worker])
    written = time.time() - 100
    os.utime(folder / "pool.json", (written, written))

    data = json.loads(snakepit("status", "--json").stdout)

    (shown,) = data["pools"][0]["workers"]
    assert 105 <= shown["seconds"] < 130
    assert shown["memory_bytes"] is None  # of this moment, and there is no process


def test_a_file_of_another_version_is_named_and_the_others_are_shown(
    snakepit: Run, place: Any
) -> None:
    strange = publish(place.runtime, name="strange")
    (strange / "pool.json").write_text('{"name": "strange"}')
    publish(place.runtime, name="shop")

    done = snakepit("status")

    assert done.returncode == 0
    assert "pool shop" in done.stdout
    (line,) = done.stderr.splitlines()
    assert str(strange / "pool.json") in line


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"workers": 1}', "\x00"])
def test_a_damaged_file_is_unreadable_and_no_other_error(place: Any, content: str) -> None:
    folder = publish(place.runtime, name="shop")
    (folder / "pool.json").write_text(content)

    with pytest.raises(UnreadablePool, match=r"pool\.json"):
        read_pool(folder)


def test_a_pool_that_has_just_gone_is_none(place: Any) -> None:
    folder = publish(place.runtime, name="shop")
    shutil.rmtree(folder)

    assert read_pool(folder) is None


def test_a_terminal_gets_a_table_and_a_pipe_does_not(snakepit: Run, place: Any) -> None:
    publish(place.runtime, name="shop", problem="[red] is no markup")
    ours, theirs = pty.openpty()
    try:
        snakepit("status", stdout=theirs, env={"TERM": "xterm", "COLUMNS": "100"})
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # as Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                shown += chunk
    finally:
        os.close(ours)
    piped = snakepit("status").stdout

    assert "┃" in shown.decode()
    assert "[red] is no markup" in shown.decode()
    assert "┃" not in piped
    assert "\x1b" not in piped


def test_a_kernel_that_has_ended_while_its_owner_lives_says_so(
    snakepit: Run, pool_owner: subprocess.Popen[str]
) -> None:
    pool_owner.send_signal(signal.SIGSTOP)  # it cannot notice, nor refill the slot
    try:
        (first, second) = json.loads(snakepit("status", "--json").stdout)["runs"]
        os.kill(first["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 5
        with contextlib.suppress(FileNotFoundError):
            # A child of the stopped owner, and so a zombie in the end: no event for a bystander.
            while "Z (zombie)" not in Path(f"/proc/{first['guardian_pid']}/status").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)

        states = {
            run["run_id"]: run["state"]
            for run in json.loads(snakepit("status", "--json").stdout)["runs"]
        }
    finally:
        pool_owner.send_signal(signal.SIGCONT)

    assert states == {first["run_id"]: "ended", second["run_id"]: "running"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2 h"), (200_000.0, "2 d")],
)
def test_a_duration_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_a_guardian_ended_after_its_owner_was_killed_is_listed(
    snakepit: Run, kernel_owner: Any, place: Any, living: Any, start_and_shut_down: Any
) -> None:
    code = "import subprocess as s; many = [s.Popen(['sleep', '600']) for _ in range(3)]"
    with kernel_owner(code, env=place.environment) as owner:
        owner.wait_ready()
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(5)] == []

    before = snakepit("status", "--runs").stdout
    start_and_shut_down()  # sweeps
    after = snakepit("status", "--runs").stdout

    for text in (before, after):
        assert "ended 3 processes: 3 x sleep 600" in text
    ended = json.loads(snakepit("status", "--runs", "--json").stdout)["ended"]
    assert sorted(run["count"] for run in ended) == [0, 3]
