"""Random kills at random moments, before bystanders: nothing is left, and none is touched."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel.ids import RUN_ID_OPTION, RUN_ID_VARIABLE, new_run_id
from snakepit_kernel.processes.run_registry import Registry

LANES = 3
"""Rounds at the same time. Their owners share the registry: each sweeps among the others' runs."""

LOOKALIKE = """
import os, signal
def note(signum, frame):
    os.write(1, f"signal {signum}\\n".encode())
for signum in set(signal.valid_signals()) - {9, 19, 17}:
    try:
        signal.signal(signum, note)
    except OSError:
        pass
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


class Bystander:
    """A process that is not to be touched: it lives, and has received no signal."""

    def __init__(self, *arguments: str, name: str, env: dict[str, str] | None = None) -> None:
        self.name = name
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", LOOKALIKE, *arguments]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def complaint(self) -> str:
        assert self.process.stdout is not None
        if self.process.poll() is not None:
            return f"{self.name} ended with status {self.process.returncode}"
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        if poll.poll(0):
            return f"{self.name} received {os.read(self.process.stdout.fileno(), 4096).decode()}"
        return ""

    def close(self) -> None:
        self.process.kill()
        self.process.__exit__(None, None, None)


def bystanders_beside(run_id: str) -> Iterator[Bystander]:
    """Processes that look as if they belonged to a run, to none that exists, or to nothing."""
    plain = {name: value for name, value in os.environ.items() if name != RUN_ID_VARIABLE}
    yield Bystander(name="a stranger", env=plain)
    yield Bystander("snakepit_kernel.kernel", "guardian.py", name="a namesake", env=plain)
    live = {**plain, RUN_ID_VARIABLE: run_id}
    yield Bystander(name="one with the environment of a live run", env=live)
    yield Bystander(RUN_ID_OPTION + run_id, name="one with the option of a live run", env=plain)
    bad = {**plain, RUN_ID_VARIABLE: "%"}
    yield Bystander(name="one with a run id that is none", env=bad)
    unknown = {**plain, RUN_ID_VARIABLE: new_run_id()}
    yield Bystander(name="one with a run id that nobody knows", env=unknown)


def play_lane(seed: int, lane: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    runtime = folder / f"{lane}"
    runtime.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("chaos_lane.py")), "lane"]
    done = subprocess.run(
        [*command, *map(str, (seed, lane, LANES, rounds))],
        env={**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}, lane {lane}: {done.stdout[-500:]}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def totals(rounds: list[dict[str, Any]]) -> str:
    kills = Counter(f"{r['target']} ({r['owns']}), {r['moment']}" for r in rounds if r["killed"])
    kinds = Counter(kind for r in rounds for kind in r["kinds"])
    follows = Counter(r["follow"] for r in rounds)
    lines = [
        f"{len(rounds)} rounds, {sum(map(bool, (r['killed'] for r in rounds)))} with a kill",
        *(f"  {count:4} {name}" for name, count in sorted(kills.items())),
        "children: " + ", ".join(f"{count} {name}" for name, count in sorted(kinds.items())),
        "the owner then: " + ", ".join(f"{n} {name}" for name, n in sorted(follows.items())),
        f"slowest round: {max((r['seconds'] for r in rounds), default=0)} s",
    ]
    return "\n".join(lines)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_after_kills_at_random_nothing_is_left_and_no_bystander_is_touched(
    start_kernel, request, tmp_path, capsys
):
    count = request.config.getoption("--chaos-kills")
    seed = request.config.getoption("--chaos-seed")
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)

    async def scenario() -> tuple[list[dict[str, Any]], list[str]]:
        async with start_kernel() as kernel:
            await kernel.run(
                "import subprocess; state = 'kept'; child = subprocess.Popen(['sleep', '600'])"
            )
            pid = kernel.pid
            bystanders = list(bystanders_beside(kernel.km.provisioner.run_id))
            sleeper = subprocess.Popen(["sleep", "7200"])
            try:
                with ThreadPoolExecutor(LANES) as lanes:
                    loop = asyncio.get_running_loop()
                    arguments = [(seed, lane, count, tmp_path) for lane in range(LANES)]
                    played = await asyncio.gather(
                        *(loop.run_in_executor(lanes, play_lane, *item) for item in arguments)
                    )
                innocents = [text for item in bystanders if (text := item.complaint())]
                if sleeper.poll() is not None:
                    innocents.append(f"sleep ended with status {sleeper.returncode}")
            finally:
                for item in bystanders:
                    item.close()
                sleeper.kill()
                sleeper.wait()
            if kernel.pid != pid or await kernel.run("print(state, child.poll())") != "kept None":
                innocents.append("the kernel of a live owner")
        return [r for rounds in played for r in rounds], innocents

    rounds, innocents = asyncio.run(scenario())

    failed = [r for r in rounds if r["complaints"]]
    with capsys.disabled():
        print(f"\nchaos: seed {seed}\n{totals(rounds)}")
        print(f"rounds that left something: {len(failed)}; innocents hit: {len(innocents)}")
    told = "\n".join(json.dumps(r, indent=1) for r in failed)
    assert innocents == [], f"seed {seed}"
    assert not failed, f"--chaos-kills {count} --chaos-seed {seed}\n{told}"
    assert len(rounds) == count
    assert Registry().runs() == []
    with sqlite3.connect(Registry().path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    left = list(Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).rglob("*"))
    assert [str(path) for path in left if not path.is_dir()] == [], f"seed {seed}"
    for path in sorted(left, reverse=True):
        path.rmdir()  # a start does that when the folder is a minute old
