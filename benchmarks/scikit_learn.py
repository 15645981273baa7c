"""Measure joblib's backend "snakepit" beside loky, in one run.

    pip install '.[notebooks,joblib]'
    python benchmarks/scikit_learn.py

Measures by turns, and prints medians and ratios (loky / ours).

- *search, cold*: a `GridSearchCV` of 200 short fits with two jobs, the first one of a process: each
  round is a new process, which has imported scikit-learn.
- *search, warm*: the same again in that process.
- *10,000 no-ops*: `Parallel` of a function that does nothing, warm.
- *arrays*: 40 tasks that get the same array of 16 MB, warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BACKENDS = ("loky", "snakepit")

GOALS = {"search, cold": 1.5, "search, warm": 1.0, "10,000 no-ops": 1.5, "arrays": 1.0}

PROGRAM = """
import json, sys, time
backend = sys.argv[1]
if backend == "snakepit":
    import snakepit_kernel.joblib
import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

flowers, kinds = load_iris(return_X_y=True)
grid = {"C": np.logspace(-2, 2, 8).tolist(), "gamma": np.logspace(-3, 1, 5).tolist()}
array = np.ones(2_000_000)

def nothing(number):
    return number

def search():
    GridSearchCV(SVC(), grid, cv=5, refit=False).fit(flowers, kinds)

def measure(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

found = {}
with parallel_config(backend=backend, n_jobs=2):
    found["search, cold"] = measure(search)
    found["search, warm"] = min(measure(search) for _ in range(3))
    calls = lambda: Parallel()(delayed(nothing)(number) for number in range(10_000))
    calls()
    found["10,000 no-ops"] = min(measure(calls) for _ in range(3))
    arrays = lambda: Parallel()(delayed(np.sum)(array) for _ in range(40))
    arrays()
    found["arrays"] = min(measure(arrays) for _ in range(3))
print(json.dumps(found))
"""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, dict[str, list[float]]] = {name: {} for name in BACKENDS}
    for turn in range(rounds):
        for name in BACKENDS if turn % 2 == 0 else reversed(BACKENDS):
            said = subprocess.run(
                [sys.executable, "-c", PROGRAM, name],
                stdout=subprocess.PIPE,
                check=True,
                cwd=Path(__file__).parent.parent,
            ).stdout
            for what, seconds in json.loads(said).items():
                found[name].setdefault(what, []).append(seconds)
    print(f"{'':16}{'loky':>10}{'snakepit':>10}{'ratio':>8}{'goal':>6}")
    for what, goal in GOALS.items():
        loky, ours = (statistics.median(found[name][what]) for name in BACKENDS)
        print(f"{what:16}{loky * 1e3:8.0f}ms{ours * 1e3:8.0f}ms{loky / ours:7.2f}x{goal:5.1f}x")


if __name__ == "__main__":
    main()
