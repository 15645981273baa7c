"""How long a pool with packages of its own takes to start.

- *make*: until the first function has run, when the environment has to be made; what uv or pip has
  in its cache is used.
- *again*: the same in the same process, for a second pool.
- *another process*: the same in a process that is new, from the call of ``Pool``.
- *no requirements*: the same without an environment, as a second pool and in another process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from snakepit_kernel import Pool

GOAL = 0.3
"""Seconds that a start may take when the environment is there."""

IN_ANOTHER_PROCESS = """
import json, sys, time
from snakepit_kernel import Pool
began = time.perf_counter()
with Pool(1, requirements=json.loads(sys.argv[1])) as pool:
    pool.submit(pow, 2, 10).result()
    print(time.perf_counter() - began)
"""


def first_result(requirements: list[str] | None) -> float:
    """Return the seconds from the call of ``Pool`` to its first result."""
    began = time.perf_counter()
    with Pool(1, requirements=requirements) as pool:
        pool.submit(pow, 2, 10).result()
        return time.perf_counter() - began


def first_result_elsewhere(requirements: list[str] | None) -> float:
    """Return the same in another process."""
    import json

    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, json.dumps(requirements)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirements", nargs="*", default=["tabulate==0.9.*"])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SNAKEPIT_CACHE_DIR"] = f"{folder}/cache"
        print(f"make: {first_result(options.requirements):.2f} s")
        for name, measure, requirements in (
            ("again", first_result, options.requirements),
            ("another process", first_result_elsewhere, options.requirements),
            ("again, no requirements", first_result, None),
            ("another process, no requirements", first_result_elsewhere, None),
        ):
            measure(requirements)
            found = [measure(requirements) for _ in range(options.rounds)]
            verdict = "" if requirements is None else f", goal {GOAL * 1000:.0f} ms"
            print(f"{name}: {statistics.median(found) * 1000:.0f} ms{verdict}")


if __name__ == "__main__":
    main()
