"""What a command in a session's shell costs, beside a process for each and other shells."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from snakepit_kernel import Pool
from snakepit_kernel.pool.session import Session

GOALS = {
    "true": ("x", 0.35),
    "/bin/true": ("x", 0.8),
    "100 MB of cat": ("MB/s x", 0.8),
    "yes | head": ("MB/s x", 0.8),
    "open and first command": ("ms", 8.0),
    "exit 3 and the next command": ("ms", 10.0),
    "process: start and wait of true": ("ms", 8.0),
    "kill of four levels": ("ms", 25.0),
    "time-out: seconds beyond it": ("ms", 10.0),
    "50 sessions: echo": ("per second", 3000.0),
}
"""What each is measured by, and the goal; x is relative to `subprocess.run`."""

MEGABYTES = 100
TREE = "bash -c 'bash -c \"sleep 600 & wait\" & wait' & echo ready; wait"

Measured = dict[str, list[float]]


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that some work takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


class Lab:
    """A pool with sessions, and a file to read.

    Parameters
    ----------
    pool
        The pool.
    folder
        For files.
    """

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool = pool
        self.file = folder / "bytes"
        self.file.write_bytes(os.urandom(1 << 20) * MEGABYTES)
        self.found: Measured = {}
        self._number = 0

    def note(self, name: str, value: float) -> None:
        """Keep a measurement."""
        self.found.setdefault(name, []).append(value)

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Open a session for a while."""
        self._number += 1
        session = self.pool.session(f"bench-{self._number}")
        try:
            yield session
        finally:
            session.delete()

    # -- each round ----------------------------------------------------------------------------

    def commands(self) -> None:
        """Measure short commands."""
        with self.session() as session:
            shell = session.shell
            shell.run("true")
            for command in ("true", "/bin/true"):
                for _ in range(50):
                    self.note(command, timed(lambda c=command: shell.run(c)))
                    self.note(f"subprocess.run: {command}", timed(lambda c=command: _beside(c)))

    def output(self) -> None:
        """Measure much output."""
        commands = {
            "100 MB of cat": f"cat {self.file}",
            "yes | head": f"yes 'some text of a line' | head -c {MEGABYTES * 10**6}",
        }
        with self.session() as session:
            for name, command in commands.items():
                run = session.shell.run
                seconds = timed(lambda c=command, r=run: r(c, max_output=1 << 30)) / 1000
                self.note(name, MEGABYTES / seconds)
                seconds = timed(lambda c=command: _beside(c)) / 1000
                self.note(f"subprocess.run: {name}", MEGABYTES / seconds)

    def starts(self) -> None:
        """Measure starts and ends."""
        for _ in range(5):
            self._number += 1
            session = self.pool.session(f"bench-{self._number}")
            self.note("open and first command", timed(lambda s=session: s.shell.run("true")))
            shell = session.shell

            def exits(run: Callable[[str], object] = shell.run) -> None:
                run("exit 3")
                run("true")

            self.note("exit 3 and the next command", timed(exits))
            start = session.processes.start
            self.note("process: start and wait of true", timed(lambda s=start: s("true").wait()))
            process = start(TREE)
            process.wait_for_log("ready")
            self.note("kill of four levels", timed(process.kill))
            self.note(
                "time-out: seconds beyond it",
                timed(lambda r=shell.run: r("sleep 10", timeout=0.1)) - 100,
            )
            session.delete()

    def many(self) -> None:
        """Measure many sessions at once."""
        with contextlib.ExitStack() as stack:
            shells = [stack.enter_context(self.session()).shell for _ in range(50)]

            async def echo() -> None:
                await asyncio.gather(*(shell.arun("echo $RANDOM") for shell in shells))

            async def rounds() -> float:
                await echo()
                began = time.perf_counter()
                for _ in range(20):
                    await echo()
                return 1000 / (time.perf_counter() - began)

            self.note("50 sessions: echo", asyncio.run(rounds()))

    def others(self) -> None:
        """Measure other shells, where they are installed."""
        if importlib.util.find_spec("pexpect") is not None:
            from pexpect import replwrap

            repl = replwrap.bash()
            for _ in range(10):
                self.note("pexpect's replwrap: true", timed(lambda: repl.run_command("true")))
            repl.child.close(force=True)
        if importlib.util.find_spec("bash_kernel") is not None:
            self._bash_kernel()

    def _bash_kernel(self) -> None:
        from jupyter_client.manager import start_new_kernel

        argv = [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Bash", "language": "bash"}
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "kernels", "bench_bash")
            place.mkdir(parents=True)
            (place / "kernel.json").write_text(json.dumps(spec))
            os.environ["JUPYTER_PATH"] = folder
            manager, client = start_new_kernel(kernel_name="bench_bash")
            try:
                for _ in range(10):
                    run = client.execute_interactive
                    self.note("bash_kernel: true", timed(lambda r=run: r("true")))
            finally:
                client.stop_channels()
                manager.shutdown_kernel(now=True)


def _beside(command: str) -> None:
    subprocess.run(["bash", "-c", command], capture_output=True, check=True)


def show(found: Measured) -> None:
    print(f"{'':40} median      (min-max)")
    for name, values in found.items():
        unit = "MB/s" if "MB of" in name or "yes |" in name else "ms"
        unit = "/s" if "50 sessions" in name else unit
        spread = f"({min(values):.2f}-{max(values):.2f})"
        print(f"{name:40} {statistics.median(values):9.2f} {unit:5} {spread}")
    print()
    for name, (kind, goal) in GOALS.items():
        value = statistics.median(found[name])
        if kind.endswith("x"):
            value /= statistics.median(found[f"subprocess.run: {name}"])
            is_reached = value >= goal if kind == "MB/s x" else value <= goal
            print(f"{name}: {value:.2f} x subprocess.run (goal {goal}): {_word(is_reached)}")
        else:
            is_reached = value >= goal if kind == "per second" else value <= goal
            print(f"{name}: {value:.1f} {kind} (goal {goal:g}): {_word(is_reached)}")


def _word(is_reached: bool) -> str:
    return "reached" if is_reached else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    with (
        tempfile.TemporaryDirectory() as folder,
        Pool(1, store=Path(folder, "store.sqlite")) as pool,
    ):
        lab = Lab(pool, Path(folder))
        for _ in range(options.rounds):
            for take in (lab.commands, lab.output, lab.starts, lab.many, lab.others):
                take()
        show(lab.found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
