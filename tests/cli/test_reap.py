"""``snakepit reap``: it ends what dead owners left behind, and touches nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel.cli.reap import as_lines
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.end_report import EndReport
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.processes.sweep import Survey, end_tagged

Run = Callable[..., subprocess.CompletedProcess[str]]

LOSE = """
import os, subprocess, sys
from snakepit_kernel.processes.run_registry import Registry
run_id, written, file = sys.argv[1:]
if written == "yes":
    Registry().reserve(run_id, label="lost kernel", leftovers=[file])
child = subprocess.Popen(
    ["sh", "-c", "trap '' TERM; env -i /bin/sleep 60; :"], env={"SNAKEPIT_RUN_ID": run_id},
    start_new_session=True, stdout=subprocess.DEVNULL,
)
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.fixture
def lose(place: Any, process_of: Any) -> Iterator[Callable[..., tuple[str, Any]]]:
    """Make a deaf process with the tag of a run whose owner is dead; give the run and it."""
    lost = []

    def run(*, written: bool = True) -> tuple[str, Any]:
        run_id = new_run_id()
        owner = subprocess.run(
            [
                sys.executable,
                "-c",
                LOSE,
                run_id,
                "yes" if written else "no",
                str(place.jupyter_runtime / "kernel-lost.json"),
            ],
            env=place.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lost.append(process_of(int(owner.stdout)))
        return run_id, lost[-1]

    yield run
    for process in lost:
        if process.is_alive:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait_gone()


def test_with_nothing_left_behind_it_says_so(snakepit: Run) -> None:
    done = snakepit("reap", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runs"] == []
    # What is printed of the whole machine may be another's: in words, of nothing at all.
    nothing = Survey(dead=[], unknown={}, kept=[], elsewhere=[], live=[])
    assert as_lines(nothing, {}, EndReport(), dry_run=False, kept=False) == ["nothing to end"]


def test_the_processes_and_files_of_a_dead_owner_go_and_the_run_is_remembered(
    snakepit: Run, lose: Callable[..., tuple[str, Any]], living: Any, place: Any
) -> None:
    file = place.jupyter_runtime / "kernel-lost.json"
    file.touch()
    run_id, process = lose()
    while len(living()) < 2:
        time.sleep(0.01)  # the shell tells nobody that it has started its child
    assert len(living()) == 2

    done = snakepit("reap", "--grace", "0.3")

    assert done.returncode == 0, done
    assert living() == []
    assert not file.exists()
    assert f"run {run_id} (lost kernel)" in done.stdout
    assert "ended 2 processes" in done.stdout
    assert Registry().runs() == []
    (ended,) = json.loads(snakepit("status", "--runs", "--json").stdout)["ended"]
    assert (ended["run_id"], ended["count"], ended["verified"]) == (run_id, 2, True)
    assert {item["signal"] for item in ended["processes"]} == {
        "SIGKILL"
    }  # the shell's deafness is its child's as well
    assert {item["pid"] for item in ended["processes"]} > {process.pid}
    table = snakepit("status", "--runs").stdout
    assert "lost kernel" in table
    assert "ended 2 processes" in table
    assert run_id not in snakepit("reap").stdout


def test_a_dry_run_names_everything_and_touches_nothing(
    snakepit: Run, lose: Callable[..., tuple[str, Any]], tmp_path: Any
) -> None:
    (tmp_path / "file").touch()
    run_id, process = lose()

    shown = snakepit("reap", "--dry-run").stdout
    data = json.loads(snakepit("reap", "--dry-run", "--json").stdout)

    assert process.is_alive
    assert (tmp_path / "file").exists()
    assert run_id in shown
    assert f"{process.pid} sh -c" in shown
    assert data["dry_run"] is True
    (run,) = data["runs"]
    assert (run["run_id"], run["label"], run["ended"]) == (run_id, "lost kernel", [])
    assert process.pid in [item["pid"] for item in run["processes"]]
    assert [run.run_id for run in Registry().runs()] == [run_id]


def test_json_says_what_was_ended(snakepit: Run, lose: Callable[..., tuple[str, Any]]) -> None:
    run_id, process = lose()
    data = json.loads(snakepit("reap", "--json", "--grace", "0").stdout)
    (run,) = data["runs"]
    assert run["run_id"] == run_id
    assert {"pid": process.pid, "signal": "SIGKILL"}.items() <= next(
        item for item in run["ended"] if item["pid"] == process.pid
    ).items()
    assert not process.is_alive


def test_a_run_that_is_not_written_down_is_left_alone_and_told(
    snakepit: Run, lose: Callable[..., tuple[str, Any]]
) -> None:
    run_id, process = lose(written=False)
    done = snakepit("reap")
    assert process.is_alive
    assert run_id in done.stdout
    assert f"kill {process.pid}" in done.stdout


def test_a_live_pool_is_not_touched(
    snakepit: Run, pool_owner: subprocess.Popen[str], living: Any
) -> None:
    before = {item.pid for item in living()}
    data = json.loads(snakepit("reap", "--json").stdout)
    assert len(data["left_alone"]["live"]) == 2
    assert {item.pid for item in living()} >= before


def set_place(**columns: object) -> None:
    """Make all rows those of another place."""
    import sqlite3

    with sqlite3.connect(Registry().path) as connection:
        for name, value in columns.items():
            connection.execute(f"UPDATE runs SET {name} = ?", (value,))
    connection.close()


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"host": "other/0123", "boot_id": "another"}, id="another host"),
        pytest.param({"pid_namespace": 1}, id="another container"),
    ],
)
def test_a_run_that_is_elsewhere_is_left_alone_and_explained(
    snakepit: Run, lose: Callable[..., tuple[str, Any]], columns: dict[str, object]
) -> None:
    run_id, process = lose()
    set_place(**columns)

    done = snakepit("reap")
    status = json.loads(snakepit("status", "--json").stdout)
    doctor = snakepit("doctor").stdout

    assert process.is_alive
    assert run_id in done.stdout
    assert "host other" in done.stdout or "another container" in done.stdout
    assert [run.run_id for run in Registry().runs()] == [run_id]
    assert [run["run_id"] for run in status["runs"]] == [run_id]
    assert "elsewhere" in doctor


def test_a_run_that_is_elsewhere_is_forgotten_after_a_month(
    snakepit: Run, lose: Callable[..., tuple[str, Any]]
) -> None:
    _, process = lose()
    set_place(host="other/0123", boot_id="another", started=1.0)
    snakepit("reap")
    assert Registry().runs() == []
    assert process.is_alive


def test_a_run_of_an_earlier_boot_is_forgotten_and_its_pids_are_left_alone(
    snakepit: Run, lose: Callable[..., tuple[str, Any]], place: Any
) -> None:
    file = place.jupyter_runtime / "kernel-lost.json"
    file.touch()
    _, process = lose()
    set_place(boot_id="another")

    snakepit("reap")

    assert Registry().runs() == []
    assert not file.exists()
    assert process.is_alive  # with the tag of a run that was over before this boot: not its process


def test_a_file_that_a_live_run_claims_as_well_stays(
    snakepit: Run, lose: Callable[..., tuple[str, Any]], place: Any
) -> None:
    file = place.jupyter_runtime / "kernel-lost.json"
    file.touch()
    lose()
    Registry().reserve(new_run_id(), label="live", leftovers=[str(file)])
    snakepit("reap", "--grace", "0")
    assert file.exists()
    assert [run.label for run in Registry().runs()] == ["live"]


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--json",), ("--kept",)])
@pytest.mark.parametrize("obstacle", ["no directory", "no database"])
def test_a_registry_that_cannot_be_used_is_an_error_and_not_nothing_to_end(
    snakepit: Run, place: Any, options: tuple[str, ...], obstacle: str
) -> None:
    data = place.data
    if obstacle == "no directory":
        data = "/proc/nowhere"
    else:
        (place.data / "runs.sqlite").mkdir()

    done = snakepit("reap", *options, env={"SNAKEPIT_DATA_DIR": str(data)})

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("snakepit: the registry of runs cannot be used: ")
    assert str(data) in line


def test_runs_that_ended_are_not_shown_as_none_where_the_registry_cannot_be_used(
    snakepit: Run, place: Any
) -> None:
    (place.data / "runs.sqlite").mkdir()
    done = snakepit("status", "--runs")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the registry of runs cannot be used" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a process of another user")
def test_a_process_that_became_another_users_is_named_and_not_waited_for(
    place: Any, lose: Callable[..., tuple[str, Any]], living: Any, tmp_path: Any
) -> None:
    """Swept as an unprivileged user; the process below the run belongs to root."""
    code = """
import asyncio, os, sys, time
from snakepit_kernel.processes import sweep
os.setuid(65534)
one = sweep.TaggedProcess(
    identity=sweep.ProcessIdentity.of(int(sys.argv[1])), run_id="a" * 13, command="sleep")
began = time.monotonic()
ending = asyncio.run(sweep.end_processes([one], 0.2))
print(len(ending.survivors), time.monotonic() - began < 10)
"""
    _, process = lose()
    done = subprocess.run(
        [sys.executable, "-c", code, str(process.pid)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2", "True"], done
    assert process.is_alive


@pytest.mark.parametrize("grace", ["-1", "x", "nan", "inf"])
def test_a_bad_grace_is_refused(snakepit: Run, grace: str) -> None:
    done = snakepit("reap", "--grace", grace)
    assert done.returncode == 2
    assert "grace" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program as another user")
@pytest.mark.parametrize("program", ["set-uid", "its own"])
def test_a_program_of_another_user_that_claims_to_be_of_a_run_is_left_alone(
    snakepit: Run, program: str, tmp_path: Any, process_of: Any
) -> None:
    """Its environment is the choice of whoever started it, also where it has root's rights."""
    sleep = Path(tempfile.mkdtemp(dir="/tmp"), "sleep")
    shutil.copy("/bin/sleep", sleep)
    sleep.parent.chmod(0o755)
    sleep.chmod(0o4755 if program == "set-uid" else 0o755)
    run_id = new_run_id()
    env = {"SNAKEPIT_RUN_ID": run_id, "SNAKEPIT_KEEP": "1" if program == "set-uid" else "0"}
    with subprocess.Popen([sleep, "600"], env=env, user=65534, group=65534, cwd="/") as stranger:
        try:
            while process_of(stranger.pid).state not in {"S", "D"}:
                time.sleep(0.01)  # until it sleeps, it may not have been executed
            effective = Path(f"/proc/{stranger.pid}/status").read_text().split("Uid:")[1].split()[1]
            done = snakepit("reap", "--kept", "--json")
            told = json.loads(done.stdout)
            ending = asyncio.run(end_tagged([run_id], 0.0))
            assert effective == ("0" if program == "set-uid" else "65534")
            assert str(stranger.pid) not in done.stdout, told
            assert (ending.ended, ending.survivors) == ([], [])
            assert process_of(stranger.pid).is_alive
        finally:
            stranger.kill()
            shutil.rmtree(sleep.parent)
