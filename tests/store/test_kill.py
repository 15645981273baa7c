"""Writers that are killed at random moments: what they were told is written is there."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store import program_table as programs_module
from snakepit_kernel.store.store import open_store

WRITERS = 4

WRITE = """
import os, random, sys
from snakepit_kernel.sessions.state import open_session
path, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
session = open_session(name, store=path, ttl=None)
variables, programs = session.variables, session.programs
variables.register_many({"n": ("integer", 0), "x": ("integer", 0), "y": ("integer", 0)})
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
step = variables["n"]
say("ready")
while True:
    step += 1
    match chance.randrange(6):
        case 0 | 1:
            say("will", "n", step); variables["n"] = step; say("did", "n", step)
        case 2:
            say("will", "xy", step)
            variables.set_many({"x": step, "y": step})
            say("did", "xy", step)
        case 3:
            say("will", "more", step)
            variables.register(f"r{step}", "integer", step)
            say("did", "more", step)
        case 4:
            found = variables.list("r*")
            if found:
                say("will", "less", found[0].value)
                variables.delete(found[0].name)
                say("did", "less", found[0].value)
        case _:
            size = chance.choice([10, 1000, 300_000])
            say("will", "program", step)
            programs["p"] = bytes([step % 256]) * size
            say("did", "program", step)
"""


class Ledger:
    """What a writer said before it was killed."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {"n": 0, "xy": 0, "program": -1}
        self.begun: tuple[str, int] | None = None
        self.there: set[int] = set()

    def note(self, line: str) -> None:
        verb, kind, number = line.split()
        if verb == "will":
            self.begun = kind, int(number)
            return
        self.begun = None
        match kind:
            case "more":
                self.there.add(int(number))
            case "less":
                self.there.discard(int(number))
            case _:
                self.done[kind] = int(number)

    def allows(self, kind: str, value: int) -> bool:
        return value == self.done[kind] or self.begun == (kind, value)

    def settle(self, **found: Any) -> None:
        """What was begun may have been done."""
        self.done |= {kind: value for kind, value in found.items() if kind in self.done}
        self.there = found["there"]
        self.begun = None


def run_writer(path: Path, name: str, seed: int, ledger: Ledger) -> None:
    """Let a process write, kill it, and read what it said to its last word."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), name, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    line = writer.stdout.readline()
    if line == "ready\n":
        killer = threading.Timer(random.Random(seed).uniform(0.0, 0.06), writer.kill)
        killer.start()
        for line in writer.stdout:
            if line.endswith("\n"):
                ledger.note(line)
        killer.join()
    _, errors = writer.communicate()
    assert line != "", f"seed {seed}: {errors}"
    assert writer.returncode == -9, f"seed {seed}: {errors}"


def complaints(path: Path, ledgers: dict[str, Ledger]) -> list[str]:
    """Compare the file with what writers were told."""
    store = open_store(path)
    found = []
    for name, ledger in ledgers.items():
        session = open_session(name, store=store, ttl=None)
        values = {variable.name: variable.value for variable in session.variables.list()}
        there = {value for key, value in values.items() if key.startswith("r")}
        program = session.programs.get("p", b"")
        known = ledger.done["program"] % 256 if ledger.done["program"] >= 0 else None
        first = program[0] if program else None
        begun = ledger.begun[1] if ledger.begun and ledger.begun[0] == "program" else None
        differs = there ^ ledger.there
        checks = {
            "n": ledger.allows("n", values["n"]),
            "half a batch": values["x"] == values["y"],
            "x": ledger.allows("xy", values["x"]),
            "registered": not differs
            or (
                ledger.begun is not None
                and ledger.begun[0] in {"more", "less"}
                and differs == {ledger.begun[1]}
            ),
            "program": first == known or (begun is not None and first == begun % 256),
            "program in parts": len(set(program)) <= 1,
        }
        found += [
            f"{name}: {what} ({ledger.done} {ledger.begun})" for what in checks if not checks[what]
        ]
        ledger.settle(n=values["n"], xy=values["x"], there=there)
        if first is not None and first != known and begun is not None:
            ledger.done["program"] = begun
    store.close()
    return found


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_after_kills_at_random_no_acknowledged_write_is_lost_and_no_batch_is_half(
    request, tmp_path, monkeypatch, capsys
):
    kills = request.config.getoption("--store-kills")
    seed = request.config.getoption("--chaos-seed")
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    path = tmp_path / "sessions.sqlite"
    ledgers = {f"w{number}": Ledger() for number in range(WRITERS)}

    failed = []
    for round_number in range(-(-kills // WRITERS)):
        writers = [
            threading.Thread(
                target=run_writer,
                args=(path, name, seed * 10**6 + round_number * WRITERS + number, ledger),
            )
            for number, (name, ledger) in enumerate(ledgers.items())
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        failed += [f"round {round_number}: {text}" for text in complaints(path, ledgers)]

    with capsys.disabled():
        done = {name: ledger.done for name, ledger in ledgers.items()}
        print(f"\nkills of writers: {kills}, seed {seed}; {json.dumps(done)}")
    assert not failed, "\n".join((f"--store-kills {kills} --chaos-seed {seed}", *failed))
    assert all(ledger.done["n"] > 0 for ledger in ledgers.values())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    monkeypatch.setattr(programs_module, "ORPHAN_SECONDS", -1.0)
    store = open_store(path)
    store.sweep()
    assert store.check() == []
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT file FROM programs WHERE file IS NOT NULL").fetchall()
    folder = path.with_name(f"{path.name}-programs")
    assert sorted(os.listdir(folder)) == sorted(name for (name,) in rows)
    assert not list(tmp_path.glob("*.corrupt-*"))
    store.close()
