"""What benchmarks share that measure from inside a cell: the kernel, and the table."""

from __future__ import annotations

import statistics
from pathlib import Path

Ratio = tuple[str, str, str, float]
"""One measurement, another, ``"<="`` or ``">="``, and the goal for the one through the other."""


def run_in_cell(benchmark: Path, call: str) -> int:
    """Run a benchmark's text in a cell of a notebook kernel, and then a call; 0 if all is well."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="snakepit")
    text = benchmark.read_text().replace("sys.exit(main())", "pass")
    here = f"import sys\nsys.path.insert(0, {str(benchmark.parent.absolute())!r})\n"
    try:
        client.execute_interactive(here, timeout=60)
        reply = client.execute_interactive(f"{text}\n{call}", timeout=3600)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return 0 if reply["content"]["status"] == "ok" else 1


def show(measured: dict[str, list[float]], rounds: int, ratios: list[Ratio]) -> None:
    """Print medians, and the ratios that matter; those of what was not measured are left out."""
    medians = {name: statistics.median(taken) for name, taken in measured.items()}
    print(f"{'':36}   median µs  (min-max of {rounds} rounds)")
    for name, taken in measured.items():
        print(f"{name:36} {medians[name]:11.1f}  ({min(taken):.1f}-{max(taken):.1f})")
    print()
    for one, other, relation, goal in ratios:
        if one in medians and other in medians:
            ratio = medians[one] / medians[other]
            reached = ratio <= goal if relation == "<=" else ratio >= goal
            verdict = "" if reached else "   MISSED"
            print(f"{one} / {other}: {ratio:.2f} (goal {relation} {goal}){verdict}")
