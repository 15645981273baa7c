"""The doctor's check of the transports by which clients reach live kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from ..processes.identity import read_command_line
from ..processes.run_registry import Run
from ..transport import TRANSPORT_VARIABLE, Reached, reached
from .findings import Finding, hint, listing, ok
from .leftover_checks import read_runs


def reached_by(run: Run) -> Reached:
    """Return how clients reach a run's kernel; unknown when it has no connection file (yet)."""
    files = [path for path in run.leftovers if path.endswith(".json")]
    if not files and run.process is not None:  # its client has written it, and removes it
        files = connection_files_in(read_command_line(run.process.pid))
    return reached(files[-1]) if files else Reached.UNKNOWN


def connection_files_in(command: bytes) -> list[str]:
    """Return the connection files that a kernel's raw command line names."""
    words = [word.decode("utf-8", "surrogateescape") for word in command.split(b"\0")]
    return [path for option, path in pairwise(words) if option == "-f" and path.startswith("/")]


def check_channels() -> Iterator[Finding]:
    """Check whether other users of the machine can read the output of live kernels."""
    name = "channels"
    runs, _ = read_runs()  # problems of the registry are another check's finding
    ways = [(run, way) for run in runs if not run.is_dead and (way := reached_by(run))]
    plain = [f"{run.label} (run {run.run_id})" for run, way in ways if way is Reached.PLAIN]
    if plain:
        text = (
            f"{len(plain)} kernels are reached over TCP without encryption, and each user of this "
            f"machine can read their output: {listing(plain)}"
        )
        advice = (
            f"leave {TRANSPORT_VARIABLE} and c.KernelManager.transport as they are, or set "
            "c.KernelManager.transport_encryption = 'auto'"
        )
        yield hint(name, text, advice, plain)
        return
    counts = Counter(way for _, way in ways)
    yield ok(
        name, ", ".join(f"{count} by {way}" for way, count in sorted(counts.items())) or "none"
    )
