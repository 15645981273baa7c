"""Measure what telemetry costs a call: while nobody listens, with a handler, with OpenTelemetry.

    pip install '.[test]'
    python benchmarks/telemetry.py

Calls a tool by turns with telemetry taken out of its way and with it, round after round, so that a
slow moment of the machine meets both. Prints medians, and their ratios with the goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from cells import show

from snakepit_kernel import Pool, telemetry

GOAL = 1.02


def nothing() -> None:
    pass


nothing.__module__ = "__main__"


@contextmanager
def taken_out() -> Iterator[None]:
    asked = telemetry.is_on
    telemetry.is_on = lambda: False
    try:
        yield
    finally:
        telemetry.is_on = asked


def median_us(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=25)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {}

    with Pool(1) as pool:
        pool.tool(nothing)

        def measure(**ways: Callable[[], object]) -> None:
            for number in range(options.rounds):
                turns = list(ways.items())
                for name, around in turns if number % 2 else reversed(turns):
                    with around():
                        taken = median_us(lambda: pool.call("nothing"), options.calls)
                    measured.setdefault(name.replace("_", " "), []).append(taken)

        median_us(lambda: pool.call("nothing"), options.calls)
        measure(
            taken_out=taken_out,
            nobody_listens=nullcontext,
            a_handler=lambda: telemetry.subscribe(lambda _: None),
        )
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        measure(taken_out_beside_an_SDK=taken_out, an_SDK_that_is_not_set_up=nullcontext)
        trace.set_tracer_provider(TracerProvider())
        measure(an_SDK_that_keeps_nothing=nullcontext)
    ratios = [
        ("nobody listens", "taken out", "<=", GOAL),
        ("an SDK that is not set up", "taken out beside an SDK", "<=", GOAL),
    ]
    show(measured, options.rounds, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
