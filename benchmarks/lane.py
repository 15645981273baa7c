"""Measure a call that does nothing, from inside a cell, beside its peers, in one run.

    pip install '.[bench]'
    python benchmarks/lane.py

Starts a notebook kernel, and in a cell of it measures by turns, round after round, so that a slow
moment of the machine meets them all: a bare socket pair between two processes (the floor), a tool
call of a pool, awaited and not, the same through its futures, ``ProcessPoolExecutor`` and
ipyparallel. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import sys

CELL = """
import asyncio, concurrent.futures, multiprocessing, os, socket, statistics, time

ROUNDS, CALLS = {rounds}, {calls}


def nothing():
    return None


def median_us(call, calls):
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def echo(theirs):
    while data := theirs.recv(256):
        theirs.send(data)


# The floor: 64 bytes to another process and back, both sides blocking.
ours, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    ours.close()
    echo(theirs)
    os._exit(0)
theirs.close()


def ping():
    ours.send(b"x" * 64)
    ours.recv(256)


from snakepit_kernel import Pool

pool = Pool(workers=1)
pool.tool(nothing)
spawn = multiprocessing.get_context("spawn")
executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn)
executor.submit(os.getpid).result()

import ipyparallel

os.environ["TQDM_DISABLE"] = "1"
cluster = ipyparallel.Cluster(n=1, log_level=40)
view = cluster.start_and_connect_sync(activate=False)[:]

candidates = {{
    "socketpair": (ping, CALLS),
    "snakepit call": (lambda: pool.call("nothing"), CALLS),
    "snakepit submit().result()": (lambda: pool.submit(os.getpid).result(), CALLS // 4),
    "ProcessPoolExecutor submit().result()": (
        lambda: executor.submit(os.getpid).result(),
        CALLS // 4,
    ),
    "ipyparallel apply_sync": (lambda: view.apply_sync(nothing), max(10, CALLS // 40)),
}}


async def awaited():
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await pool.acall("nothing")
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


measured = {{name: [] for name in [*candidates, "snakepit await acall"]}}
for turn in range(ROUNDS + 1):
    for name, (call, calls) in candidates.items():
        taken = median_us(call, calls)
        if turn:  # the first round warms up
            measured[name].append(taken)
    taken = await awaited()
    if turn:
        measured["snakepit await acall"].append(taken)

ours.close()
os.waitpid(child, 0)
pool.shutdown()
executor.shutdown()
cluster.stop_cluster_sync()

own = statistics.median(measured["snakepit call"])
print(f"{{'':40}} median µs  (min-max of {{ROUNDS}} rounds)")
for name, rounds in measured.items():
    spread = f"({{min(rounds):.1f}}-{{max(rounds):.1f}})"
    print(f"{{name:40}} {{statistics.median(rounds):9.1f}}  {{spread}}")
print()
for name, rounds in measured.items():
    ratio = statistics.median(rounds) / own
    if name == "socketpair":
        print(f"a snakepit call takes {{1 / ratio:.1f}} x a socketpair ping-pong")
    elif name != "snakepit call":
        print(f"{{name}} takes {{ratio:.1f}} x a snakepit call")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    options = parser.parse_args()

    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="snakepit")
    try:
        reply = client.execute_interactive(
            CELL.format(rounds=options.rounds, calls=options.calls), timeout=600
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return 0 if reply["content"]["status"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
