"""Measure how kernels end, ours beside the stock one, in one run.

    pip install '.[bench]'
    python benchmarks/ending.py

Measures by turns, round after round in changing order, so that a slow moment of the machine meets
all; each with a fresh kernel. Prints medians and ratios of

- what clean-up adds: the seconds from the death of the kernel's process until
  ``await provisioner.cleanup()`` has returned, which it does when the guardian has said that
  nothing is left, and has itself ended. It is in percent of a stock restart, from the call of
  ``restart_kernel(now=False)`` until the new kernel answers a ``kernel_info_request``.
  *asked*: within a graceful restart, where our kernel has its children ended while it shuts down
  itself, so that little is left to do. *killed*: the kernel gets SIGKILL, ``cleanup`` is called at
  once, and all is left to do.
- a graceful restart with one living child, in the kernel's session, where jupyter_client's
  interrupt hits it as well, or detached.
- after SIGKILL of the process that owns a kernel with four children: the seconds until no process
  of all that is alive.

Deaths are seen by a thread that polls pidfds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

STOCK, OURS = "python3", "snakepit"

GRACE = 2.0
"""Seconds that our kernelspec gives to what a kernel leaves behind."""

PATIENCE = 5.0
"""Seconds after which what is still alive is taken to stay."""

STRAYS = """
import subprocess
children = [
    subprocess.Popen(["sleep", "600"], start_new_session=number % 2 == 0)
    for number in range({count})
]
print(*(child.pid for child in children), flush=True)
"""

CHILD = """
import subprocess
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
"""

STUBBORN = """
import subprocess
child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; exec sleep 600"], stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
"""

OWNER = """
import asyncio, subprocess, sys
from jupyter_client.manager import AsyncKernelManager

async def main():
    km = AsyncKernelManager(kernel_name=sys.argv[1])
    await km.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kc = km.client()
    kc.start_channels()
    await kc.wait_for_ready(timeout=60)
    guarded = getattr(km.provisioner, "guarded", None)
    print(km.provisioner.pid, *([guarded.guardian.pid] if guarded else []))
    for code in sys.argv[2:]:
        await kc.execute_interactive(code, timeout=60)
    print("ready", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""

Measured = dict[str, float]


class Deaths:
    """The moments at which processes end, seen by a thread of its own."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.moments: dict[int, float] = {}  # by pid, in their order
        self._pids = {os.pidfd_open(pid): pid for pid in pids}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> int:
        """How many are not known to have ended."""
        return len(self._pids) - len(self.moments)

    def join(self) -> None:
        """Wait for the last one, or until patience ends; then end whatever is left."""
        self._thread.join()
        for pidfd in self._pids:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def _watch(self) -> None:
        poll = select.poll()
        for pidfd in self._pids:
            poll.register(pidfd, select.POLLIN)
        until = time.perf_counter() + PATIENCE
        while self.alive and (left := until - time.perf_counter()) > 0:
            for pidfd, _ in poll.poll(left * 1000):
                self.moments[self._pids[pidfd]] = time.perf_counter()
                poll.unregister(pidfd)


class Kernel:
    """A kernel, its manager and a client."""

    def __init__(self, km: Any, kc: Any) -> None:
        self.km = km
        self.kc = kc

    async def pids_of(self, code: str) -> list[int]:
        """Run a cell that prints the pids of what it starts."""
        shown: list[str] = []
        await self.kc.execute_interactive(
            code,
            timeout=60,
            output_hook=lambda message: shown.append(message["content"].get("text", "")),
        )
        return [int(word) for word in "".join(shown).split()]

    async def answer(self) -> None:
        """Wait until the kernel answers, by a socket that tries to connect every 2 ms."""
        import zmq

        socket = self.km.context.socket(zmq.DEALER)
        socket.linger, socket.reconnect_ivl = 0, 2
        socket.connect(f"tcp://{self.km.ip}:{self.km.shell_port}")
        with contextlib.closing(socket):
            self.km.session.send(socket, "kernel_info_request")
            await asyncio.wait_for(socket.recv_multipart(), 60)

    async def restart(self) -> tuple[float, float]:
        """Restart politely; give the seconds of the call, and until the new kernel answers."""
        began = time.perf_counter()
        await self.km.restart_kernel(now=False)
        called = time.perf_counter() - began
        await self.answer()
        return called, time.perf_counter() - began


@contextlib.asynccontextmanager
async def started(name: str) -> AsyncIterator[Kernel]:
    from jupyter_client.manager import AsyncKernelManager

    km = AsyncKernelManager(kernel_name=name)
    await km.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kc = km.client()
    kc.start_channels()
    try:
        await kc.wait_for_ready(timeout=60)
        yield Kernel(km, kc)
    finally:
        kc.stop_channels()
        await km.shutdown_kernel(now=True)


async def restart(name: str, label: str, cell: str = "") -> Measured:
    """Restart a kernel with what a cell has started."""
    async with started(name) as kernel:
        provisioner = kernel.km.provisioner
        pid, cleanup = provisioner.pid, provisioner.cleanup
        deaths = Deaths([pid, *(await kernel.pids_of(cell) if cell else [])])
        verified = []

        async def timed_cleanup(restart: bool = False) -> None:
            await cleanup(restart=restart)
            verified.append(time.perf_counter())

        provisioner.cleanup = timed_cleanup
        called, ready = await kernel.restart()
        deaths.join()
        measured = {
            f"{name} restart, {label}: the call": called,
            f"{name} restart, {label}: until it answers": ready,
        }
        if name == OURS:
            measured[f"{name} clean-up, {label}, asked"] = verified[0] - deaths.moments[pid]
        return measured


async def kill(strays: int) -> Measured:
    """Kill our kernel, and clean up."""
    async with started(OURS) as kernel:
        provisioner = kernel.km.provisioner
        pids = await kernel.pids_of(STRAYS.format(count=strays)) if strays else []
        deaths = Deaths([provisioner.pid, *pids])
        os.kill(provisioner.pid, signal.SIGKILL)
        await provisioner.cleanup(restart=True)
        verified = time.perf_counter()
        assert provisioner.last_report.verified
        assert provisioner.last_report.count == strays
        assert deaths.alive == 0
        deaths.join()
        taken = verified - deaths.moments[provisioner.pid]
        return {f"{OURS} clean-up, {strays} children, killed": taken}


def kill_owner(name: str, label: str, *cells: str) -> Measured:
    """Kill the process that owns a kernel."""
    program = [sys.executable, "-c", OWNER, name, *cells]
    with subprocess.Popen(program, stdin=-1, stdout=-1, text=True) as owner:
        pids: list[int] = []
        while (line := owner.stdout.readline()) != "ready\n":
            pids += map(int, line.split())
        deaths = Deaths(pids)
        began = time.perf_counter()
        owner.kill()
        owner.wait()
        deaths.join()
        stay = len(pids) - len(deaths.moments)
        return {
            f"{name} owner killed, {label}: processes that stay": stay,
            f"{name} owner killed, {label}: the last death": max(deaths.moments.values()) - began,
        }


MEASUREMENTS: list[Callable[[], Coroutine[Any, Any, Measured]]] = [
    lambda: restart(STOCK, "0 children"),
    lambda: restart(OURS, "0 children"),
    lambda: restart(OURS, "8 children", STRAYS.format(count=8)),
    lambda: kill(0),
    lambda: kill(8),
    lambda: restart(STOCK, "1 child", CHILD),
    lambda: restart(OURS, "1 child", CHILD),
    lambda: restart(STOCK, "1 detached child", STRAYS.format(count=1)),
    lambda: restart(OURS, "1 detached child", STRAYS.format(count=1)),
    lambda: asyncio.to_thread(kill_owner, STOCK, "4 children", STRAYS.format(count=4)),
    lambda: asyncio.to_thread(kill_owner, OURS, "4 children", STRAYS.format(count=4)),
    lambda: asyncio.to_thread(
        kill_owner, OURS, "1 of 4 ignores SIGTERM", STRAYS.format(count=3), STUBBORN
    ),
]


async def measure(rounds: int) -> dict[str, list[float]]:
    """Take every measurement in every round; the first round warms up."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        order = MEASUREMENTS if turn % 2 else MEASUREMENTS[::-1]
        for take in order:
            for name, value in (await take()).items():
                found.setdefault(name, [])
                if turn:
                    found[name].append(value)
    return found


def show(found: dict[str, list[float]]) -> None:
    rounds = max(map(len, found.values()))
    print(f"{'':66}  median  (min-max of {rounds} rounds)")
    for name, values in sorted(found.items()):
        spread = f"({min(values):.4f}-{max(values):.4f})"
        unit = "" if name.endswith("stay") else "s"
        print(f"{name:66} {statistics.median(values):7.4f} {unit:1} {spread}")
    print()
    middle = {name: statistics.median(values) for name, values in found.items()}
    whole = middle[f"{STOCK} restart, 0 children: until it answers"]
    for strays, goal in ((0, 2), (8, 8)):
        for way in ("asked", "killed"):
            share = 100 * middle[f"{OURS} clean-up, {strays} children, {way}"] / whole
            print(
                f"clean-up of a run with {strays} children ({way}): {share:.1f} % of a stock "
                f"restart (goal: at most {goal} %)"
            )
    for label in ("0 children", "1 child", "1 detached child"):
        for what in ("the call", "until it answers"):
            stock, ours = (found[f"{name} restart, {label}: {what}"] for name in (STOCK, OURS))
            slow, fast = statistics.median(stock), statistics.median(ours)
            print(
                f"graceful restart with {label}, {what}: stock {slow:.3f} s, ours {fast:.3f} s: "
                f"{slow / fast:.1f} x as fast ({min(stock) / min(ours):.1f} x in the best rounds)"
            )
    for label, goal in (("4 children", 1.0), ("1 of 4 ignores SIGTERM", GRACE + 0.5)):
        taken = middle[f"{OURS} owner killed, {label}: the last death"]
        print(f"owner killed, {label}: nothing alive after {taken:.3f} s (goal: {goal:.1f} s)")
    stay = middle[f"{STOCK} owner killed, 4 children: processes that stay"]
    print(f"owner of a stock kernel killed: {stay:.0f} processes alive after {PATIENCE:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    show(asyncio.run(measure(options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
