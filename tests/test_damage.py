"""Random damage to the two databases: it is told and mended, and harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel.errors import SnakepitError
from snakepit_kernel.ids import RUN_ID_VARIABLE, new_run_id
from snakepit_kernel.processes.end_report import EndReport
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.run_folders import make_folder
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.processes.sweep import past_runs, sweep
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.store import open_store

ROUNDS = 100
"""Copies of each file that are damaged."""

DEAD = "999999:1"


def single_bytes(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 3, 30])):
        content[chance.randrange(len(content))] = chance.randrange(256)


def used_bytes(content: bytearray, chance: random.Random) -> None:
    """Hit what is no zero: most of a page is empty."""
    used = [place for place, byte in enumerate(content) if byte]
    for place in chance.sample(used, chance.choice([1, 3, 10])):
        content[place] = chance.randrange(256)


def header(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 2])):
        content[chance.randrange(120)] = chance.randrange(256)


def block(content: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(content))
    size = min(chance.choice([8, 100, 4096]), len(content) - begin)
    content[begin : begin + size] = chance.randbytes(size)


def cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


KINDS: list[Callable[[bytearray, random.Random], None]] = [
    *(single_bytes, used_bytes, used_bytes, used_bytes, header, block, cut)
]


def damage(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    chance.choice(KINDS)(content, chance)
    path.write_bytes(content)


def checkpoint(path: Path) -> bytes:
    """Have all that was written in the file itself, and return that."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path.read_bytes()


@pytest.fixture
def folders(monkeypatch, tmp_path) -> Path:
    for name in ("SNAKEPIT_RUNTIME_DIR", "SNAKEPIT_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(name, str(folder))
    return tmp_path


def test_a_damaged_registry_kills_nobody_removes_nothing_of_others_and_works_again(folders):
    jupyters = folders / "JUPYTER_RUNTIME_DIR"
    victim = folders / "victim"
    live_file = jupyters / "kernel-1.json"
    registry = Registry()
    path = registry.path
    live, over = new_run_id(), new_run_id()
    env = {RUN_ID_VARIABLE: live}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=env) as innocent:
        this = ProcessIdentity.of(innocent.pid)
        assert this is not None
        registry.reserve(live, label="live", leftovers=[str(live_file), str(victim)])
        registry.activate(live, this, this)
        registry.reserve(over, label="over")
        registry.retire(over, EndReport(verified=True, count=1))
        registry.book("b", "pool", 3, bytes_each=0, cores=4, memory_bytes=0)
        for number in range(20):
            registry.reserve(new_run_id(), label=f"dead {number}", leftovers=["/nowhere"])
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE runs SET owner = ? WHERE label <> 'live'", (DEAD,))
        content = checkpoint(path)
        (before,) = [run for run in registry.runs() if run.run_id == live]
        folder = make_folder("mine")
        lost = 0
        for seed in range(ROUNDS):
            path.write_bytes(content)
            victim.mkdir(exist_ok=True)
            live_file.touch()
            damage(path, seed)

            first, second = Registry(), Registry()
            if seed % 5 == 0 or before not in first.runs():  # it takes a while
                asyncio.run(sweep(first, 0.0))
                past_runs(first)
                first.bookings()
                assert first.book("c", "pool", 2, bytes_each=0, cores=4, memory_bytes=0) >= 1
            new = new_run_id()
            second.reserve(new, label="new")
            runs = {run.run_id for run in second.runs()}

            assert new in runs, seed
            lost += live not in runs
            assert innocent.poll() is None, seed
            assert victim.is_dir(), seed
            assert live_file.exists(), seed
            assert folder.exists(), seed
            for left in path.parent.glob("runs.sqlite*"):
                left.unlink()
        assert lost < ROUNDS // 3
        innocent.communicate(b"")


def test_a_damaged_store_can_be_opened_again_and_keeps_what_can_be_read(tmp_path):
    original, path = tmp_path / "original" / "sessions.sqlite", tmp_path / "sessions.sqlite"
    store = open_store(original)
    values = {f"v{number}": "x" * 50 + str(number) for number in range(8)}
    for name in ("a", "b"):
        session = open_session(name, store=store)
        for variable, value in values.items():
            session.variables.register(variable, "string", value)
            session.variables.set(variable, value)
        session.programs.put("p", {"weights": [1, 2]})
        session.metadata["note"] = 1
    store.close()
    content = checkpoint(original)
    whole = 0
    for seed in range(ROUNDS):
        path.write_bytes(content)
        damage(path, seed)

        store = open_store(path)
        use_all(store)  # until the damage is found
        for name in ("a", "b", "new"):
            session = open_session(name, store=store)
            session.variables.register("after", "integer", seed)
            assert session.variables["after"] == seed
        found = open_session("a", store=store).variables
        with contextlib.suppress(SnakepitError):  # a value can be damaged, and says so
            whole += all(found.get(name) == value for name, value in values.items())
        store.close()
        for left in tmp_path.glob("sessions.sqlite*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert whole > ROUNDS // 2


def use_all(store) -> None:
    for look in (
        store.sessions.all,
        store.sweep,
        store.check,
        *(
            lambda name=name: list_all(open_session(name, store=store))
            for name in ("a", "b", "new")
        ),
    ):
        with contextlib.suppress(SnakepitError):
            look()


def list_all(session) -> None:
    session.variables.list()
    for name in session.variables:
        session.variables.history(name)
    session.programs.list()
    dict(session.metadata)
