"""Measure `snakepit run` beside plain papermill, in one run.

    pip install '.[notebooks,papermill]'
    python benchmarks/notebook_runs.py

Runs the same light notebooks (ten cells, with numpy and pandas), two at a time: by
``snakepit run -j 2``, and by two loops of ``papermill`` commands. Prints both times and their ratio
(papermill / ours); the goal is 6.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

CELLS = [
    "import numpy as np\nimport pandas as pd",
    "rng = np.random.default_rng(seed)",
    "frame = pd.DataFrame({'x': rng.normal(size=1000), 'y': rng.integers(0, 9, 1000)})",
    "frame.describe()",
    "means = frame.groupby('y').mean()",
    "means",
    "print(means.x.max() > 0)",
    "total = float(frame.x.sum())",
    "total > -1e9",
    "frame.head()",
]

BIN = Path(sys.executable).parent


def write(folder: Path, number: int) -> Path:
    """Write a notebook."""
    cells = [new_code_cell(f"seed = {number}"), *map(new_code_cell, CELLS)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{number:03}.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def ours(notebooks: list[Path], folder: Path) -> None:
    """Run them by one command of ours."""
    command = [BIN / "snakepit", "run", "-j", "2", "--output-dir", folder, *notebooks]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def plain(notebooks: list[Path], folder: Path) -> None:
    """Run them by a command of papermill each."""

    def one(path: Path) -> None:
        command = [BIN / "papermill", "--no-progress-bar", path, folder / path.name]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(one, notebooks))


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"papermill": [], "snakepit": []}
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            notebooks = [write(folder, number) for number in range(options.notebooks)]
            ways = [("papermill", plain), ("snakepit", ours)]
            for way, run in ways if turn % 2 == 0 else reversed(ways):
                began = time.perf_counter()
                run(notebooks, folder / way)
                found[way].append(time.perf_counter() - began)
    plains, own = (statistics.median(found[way]) for way in found)
    print(f"{options.notebooks} notebooks: papermill {plains:.1f} s, snakepit run {own:.1f} s")
    print(f"ratio {plains / own:.1f} x, to reach: 6 x")


if __name__ == "__main__":
    main()
