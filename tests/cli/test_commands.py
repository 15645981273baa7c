"""The command line as a whole: help, misuse, and output that nobody takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from snakepit_kernel import __version__
from snakepit_kernel.cli import commands, program_name

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_version_takes_well_under_300_ms_of_a_processor(snakepit: Run) -> None:
    times = []
    for _ in range(5):
        before = os.times()
        done = snakepit("--version")
        after = os.times()  # not the clock on the wall, which goes on while others compute
        times.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )

    assert done.stdout == f"snakepit {__version__}\n"
    assert min(times) < 0.3


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_neither_the_pool_nor_jupyter(option: str) -> None:
    script = (
        "import sys; from snakepit_kernel.cli.commands import run; run([sys.argv[1]]);"
        "print(*(name for name in sys.modules if name.startswith("
        "('snakepit_kernel.pool', 'jupyter', 'zmq', 'IPython', 'psutil', 'rich'))),"
        "file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, option], capture_output=True, text=True, check=True
    )

    assert done.stderr.split() == []


def test_no_arguments_show_the_help_with_every_command(snakepit: Run) -> None:
    done = snakepit()

    assert done.returncode == 0
    assert {"doctor", "status", "new-adapter", "wrap", "unwrap"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["statu"], "'status'"),
        (["new-adaptor", "shop"], "'new-adapter'"),
        (["status", "--jsn"], "--json"),
        (["doctor", "--strat"], "--start"),
        (["--versoin"], "--version"),
        (["doctor", "--start=1"], "--start"),
        (["new-adapter"], "NAME"),
        (["status", "default"], "default"),
        (["new-adapter", "shop", "--directory"], "--directory"),
    ],
)
def test_misuse_is_one_line_that_names_what_was_meant(
    snakepit: Run, arguments: list[str], expected: str
) -> None:
    done = snakepit(*arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("snakepit: ")
    assert expected in line


def test_an_unknown_command_near_to_none_lists_them_all(snakepit: Run) -> None:
    done = snakepit("xyz")

    assert done.returncode == 2
    assert (
        "doctor, env, kill, logs, new-adapter, ps, reap, run, status, unwrap, wrap" in done.stderr
    )


def test_jupyter_runs_the_command_under_its_second_name(place: Any) -> None:
    jupyter = shutil.which("jupyter")
    assert jupyter is not None

    done = subprocess.run(
        [jupyter, "snakepit", "--help"],
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: jupyter snakepit ")


def test_python_runs_the_command_as_a_module(place: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakepit_kernel", "statu"],
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("python -m snakepit_kernel: ")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/opt/x/bin/snakepit", "snakepit"),
        ("/opt/x/bin/jupyter-snakepit", "jupyter snakepit"),
        ("/x/snakepit_kernel/__main__.py", "python -m snakepit_kernel"),
        ("-c", "snakepit"),
    ],
)
def test_the_program_is_called_what_the_user_typed(script: str, name: str) -> None:
    assert program_name(script) == name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["status"], ["status", "--json"], ["doctor"]]
)
def test_a_reader_that_has_gone_causes_no_word_and_status_1(
    snakepit: Run, arguments: list[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = snakepit(*arguments, stdout=write)
    finally:
        os.close(write)

    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["doctor", "--json"]])
def test_a_full_disk_under_the_output_is_one_line(snakepit: Run, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = snakepit(*arguments, stdout=full)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"]])
def test_a_closed_output_causes_no_word(place: Any, arguments: list[str]) -> None:
    command = '"$0" "$@" >&-'

    done = subprocess.run(
        ["/bin/sh", "-c", command, "snakepit", *arguments],
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_directory_that_cannot_be_used_is_one_line(snakepit: Run) -> None:
    done = snakepit("status", env={"SNAKEPIT_RUNTIME_DIR": "/proc/nowhere"})

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "/proc/nowhere" in line
    assert "set SNAKEPIT_RUNTIME_DIR" in line


def test_status_without_a_registry_still_shows_the_pools(
    snakepit: Run, pool_owner: subprocess.Popen[str]
) -> None:
    done = snakepit("status", env={"SNAKEPIT_DATA_DIR": "/proc/nowhere"})

    assert done.returncode == 0
    assert f"pool shop of process {pool_owner.pid}" in done.stdout
    (line,) = done.stderr.splitlines()
    assert "/proc/nowhere" in line


def test_an_interrupt_ends_a_command_with_status_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(**options: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("snakepit_kernel.cli.status.show", interrupt)

    assert commands.run(["status"]) == 130
    assert capsys.readouterr().err.strip() == "snakepit: interrupted"
