"""Secrets on command lines of processes that had to be ended are in no file, table or report."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakepit_kernel.processes.run_registry import Registry

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SECRETS = {f"S{number}": secrets.token_hex(8) for number in range(5)}

OWNER = """
import sys
from snakepit_kernel import Pool
pool = Pool(1)
print(pool.run('''
import os, subprocess, sys
s = [os.environ[f"S{n}"] for n in range(5)]
child = subprocess.Popen(
    ["sh", "-c", "trap : TERM; echo; while :; do sleep 600; done",
     f"--password={s[0]}", "--token", s[1], f"https://me:{s[2]}@host/",
     "-H", f"Authorization: Bearer {s[3]}", f"API_KEY={s[4]}", "x"],
    stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid)
''').stdout.strip(), flush=True)
sys.stdin.readline()
pool.shutdown()
"""


def own(place: Any) -> tuple[subprocess.Popen[str], int]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**place.environment, **SECRETS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


def written(place: Any) -> str:
    """Return all that stands in files of the data and the runtime folders."""
    files = [
        Path(folder, name)
        for top in (place.data, place.runtime, place.jupyter_runtime)
        for folder, _, names in os.walk(top)
        for name in names
    ]
    return "".join(path.read_bytes().decode("latin-1") for path in files if path.is_file())


def assert_told_without_secrets(text: str) -> None:
    for value in SECRETS.values():
        assert value not in text


def test_secrets_of_a_child_that_a_pool_ended_are_not_kept(place: Any, snakepit: Run) -> None:
    owner, _ = own(place)
    rest, _ = owner.communicate("\n", timeout=60)

    table, data = snakepit("status", "--runs").stdout, snakepit("status", "--runs", "--json").stdout

    process = next(
        item for item in json.loads(data)["ended"][0]["processes"] if "TERM" in item["command"]
    )
    shown = "--password=*** --token *** https://me:***@host/ -H Authorization: *** API_KEY=*** x"
    assert process["command"].endswith(shown)
    for text in (rest, table, data, written(place)):
        assert_told_without_secrets(text)
    assert "API_KEY=***" in written(place)


def test_secrets_of_a_child_whose_owner_was_killed_are_not_kept(
    place: Any, snakepit: Run, process_of: Callable[[int], Any]
) -> None:
    owner, child = own(place)
    process = process_of(child)

    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=60)
    assert process.wait_gone()
    before = written(place)
    reaped = snakepit("reap").stdout
    data = snakepit("status", "--runs", "--json").stdout

    assert Registry().runs() == []
    assert "API_KEY=***" in data
    for text in (before, reaped, data, written(place)):
        assert_told_without_secrets(text)
