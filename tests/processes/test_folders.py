"""Run folders: those of dead processes go, and nothing that only looks like one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from snakepit_kernel.processes import run_folders
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.pid_scope import here
from snakepit_kernel.processes.run_folders import UNCLAIMED_SECONDS, make_folder, sweep_folders


@pytest.fixture
def runtime(monkeypatch, tmp_path) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(folder))
    return folder


def make_old(*folders: Path) -> None:
    then = time.time() - UNCLAIMED_SECONDS - 1
    for folder in folders:
        os.utime(folder, (then, then))


def test_the_folder_of_a_dead_process_goes_and_that_of_a_living_one_stays(runtime):
    mine, dead = make_folder("mine"), make_folder("dead")
    (dead / "owner").write_text("1:0 another-boot")
    (dead / "socket").touch()

    assert sweep_folders() == [dead]

    assert mine.exists()
    assert not dead.exists()


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, True),
        ({"boot": "another"}, True),
        ({"boot": "another", "host": "other/1"}, False),
        ({"host": "clone/1"}, False),
        ({"pid_namespace": 1}, False),
        ({"time_namespace": 1}, False),
    ],
)
def test_the_folder_of_a_process_that_cannot_be_seen_from_here_stays(
    changes, goes, runtime, monkeypatch
):
    """Whether its pid is that of a living process is known only where it was made."""
    elsewhere = replace(here(), **changes)
    monkeypatch.setattr(run_folders, "here", lambda: elsewhere)
    monkeypatch.setattr(run_folders.ProcessIdentity, "of", lambda pid: ProcessIdentity(pid, 1))
    folder = make_folder("pool")
    monkeypatch.undo()
    monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(runtime))

    assert sweep_folders() == ([folder] if goes else [])


BY_ANOTHER_CLOCK = ["unshare", "--user", "--map-root-user", "--time", "--boottime", "86400"]
BY_ANOTHER_CLOCK += ["--fork"]


def unshare_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*BY_ANOTHER_CLOCK, "true"], stderr=-3, check=False).returncode == 0


@pytest.mark.skipif(not unshare_works(), reason="this machine lets us make no time namespace")
def test_the_folder_of_a_live_process_stays_for_one_with_another_clock(runtime):
    folder = make_folder("pool")
    sweep = "from snakepit_kernel.processes import run_folders; print(run_folders.sweep_folders())"

    done = subprocess.run(
        [*BY_ANOTHER_CLOCK, sys.executable, "-c", sweep],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"
    assert folder.exists()


@pytest.mark.parametrize("names", [[], ["owner.new"], ["owner"]])
def test_a_folder_whose_maker_died_before_it_could_say_so_goes_after_a_while(runtime, names):
    folder = runtime / ("a" * 13) / "pool-abcdef"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    assert sweep_folders() == []

    make_old(folder)

    assert sweep_folders() == [folder]


def test_a_folder_of_somebody_else_whose_name_could_be_a_run_stays(runtime):
    chapter = runtime / "documentation" / "chapter"
    chapter.mkdir(parents=True)
    (chapter / "text").touch()
    make_old(chapter, chapter.parent)

    sweep_folders()

    assert (chapter / "text").exists()


def test_nothing_behind_a_link_is_removed(runtime, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "empty").mkdir(parents=True)
    make_old(elsewhere / "empty", elsewhere)
    (runtime / ("a" * 13)).symlink_to(elsewhere)

    assert sweep_folders() == []

    assert (elsewhere / "empty").exists()
