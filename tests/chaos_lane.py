"""One lane of `test_chaos.py`: rounds, one after the other, each told as a line of JSON.

    chaos_lane.py lane SEED FIRST STEP ROUNDS    plays rounds FIRST, FIRST + STEP, ...
    chaos_lane.py manager|pool KIND,KIND...      is an owner: of a kernel, or of a pool of two

A lane is a subreaper, so whatever a round starts stays below it. It looks with code of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from snakepit_kernel import Pool, SnakepitError, StartFailed
from snakepit_kernel.processes.run_registry import Registry

GRACE = 0.3
PATIENCE = 10.0
"""Seconds until what is alive is a survivor; far more than is promised, on a loaded machine."""

CHILDREN = {
    "fork": "if os.fork() == 0: time.sleep(600); os._exit(0)",
    "setsid": "kept.append(subprocess.Popen(['sleep', '600'], start_new_session=True))",
    "double fork": "subprocess.run(['sh', '-c', 'setsid sleep 600 >/dev/null 2>&1 </dev/null &'])",
    "empty environment": (
        "kept.append(subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True))"
    ),
    "nohup": "subprocess.run(['sh', '-c', 'nohup sleep 600 >/dev/null 2>&1 </dev/null &'])",
    "deaf": "subprocess.run(['sh', '-c', \"trap '' TERM; setsid sleep 600 >/dev/null 2>&1 &\"])",
    "stopped": "kept.append(subprocess.Popen(['sleep', '600'])); kept[-1].send_signal(19)",
    "quick re-forker": """
code = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
until = time.monotonic() + 20  # a bound, for the sake of the machine
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
    time.sleep(0.002)
'''
kept.append(subprocess.Popen([sys.executable, '-I', '-S', '-c', code], start_new_session=True))
""",
}
TARGETS = ["owner", "guardian", "kernel", "owner and guardian", "template"]
GUARDIAN = re.compile(r"guardian(\.py)? --snakepit-run-id=")
TEMPLATE = re.compile(r"template --owner=(?P<pid>\d+):")
KERNEL = re.compile(r"^\S+ -m snakepit_kernel.kernel -f ")
MOMENTS = {"start": 1.2, "running": 0.2, "end": 0.4}  # each with its longest delay in seconds
FOLLOWS = ["shutdown", "restart", "leave", "kill"]


def say(word: str) -> None:
    print(word, flush=True)


# -- owners --------------------------------------------------------------------------------------


def children(kinds: str) -> str:
    code = ["import os, signal, subprocess, sys, time", "kept = []"]
    return "\n".join([*code, *(CHILDREN[kind] for kind in kinds.split(","))])


def own_a_pool(kinds: str) -> None:
    say("starting")
    pool = None
    with contextlib.suppress(SnakepitError):
        pool = Pool(2, grace=GRACE, start_timeout=20)
        pool.run_all(children(kinds))
    say("ready")
    word = sys.stdin.readline().strip()
    if word == "leave":
        return
    if pool is not None and word == "restart":
        pool.terminate()
        with contextlib.suppress(SnakepitError):
            pool = Pool(1, grace=GRACE, start_timeout=20)
    if pool is not None:
        pool.shutdown()
    say("ended")
    sys.stdin.readline()


async def own_a_kernel(kinds: str) -> None:
    config = Config({"SnakepitProvisioner": {"grace": GRACE}})
    km = AsyncKernelManager(kernel_name="snakepit", config=config, shutdown_wait_time=2.0)

    async def set_up() -> None:
        say("starting")
        sink = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        await km.start_kernel(**sink)
        kc = km.client()
        kc.start_channels()
        try:
            await kc.wait_for_ready(timeout=20)
            code = children(kinds)
            await kc.execute_interactive(code, timeout=20, output_hook=lambda message: None)
        finally:
            kc.stop_channels()
            say("ready")

    task = asyncio.create_task(set_up())
    word = (await asyncio.to_thread(sys.stdin.readline)).strip()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if word == "leave":
        return
    if km.has_kernel and word == "restart":
        with contextlib.suppress(StartFailed):  # the new kernel's guardian was the victim
            await km.restart_kernel(now=bool(os.getpid() % 2))
    if km.has_kernel:
        await km.shutdown_kernel(now=bool(os.getpid() % 3))
    else:
        await km.cleanup_resources()
    say("ended")
    await asyncio.to_thread(sys.stdin.readline)


# -- looking -------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process that can be told from the next one with its pid."""

    pid: int
    start_time: int
    parent: int
    state: str
    command: str

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                now = look(self.pid)
                if now is not None and now.start_time == self.start_time:
                    signal.pidfd_send_signal(pidfd, signum)
            finally:
                os.close(pidfd)


def look(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
        command = (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return None
    return Process(pid, int(fields[19]), int(fields[1]), fields[0], command)


def below_us(owner: int) -> list[Process]:
    """Every living process below this one; zombies that fell to us are reaped, not the owner."""
    by_parent: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := look(int(name))) is not None:
            by_parent.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    level = by_parent.get(os.getpid(), [])
    for process in level:
        if process.state == "Z" and process.pid != owner:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
    while level:
        found += level
        level = [child for process in level for child in by_parent.get(process.pid, [])]
    return [process for process in found if process.state not in "ZX"]


def children_but(owner: int) -> set[int]:
    """Children of this process, zombies too: one that forks all the time is not in a scan."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    children = {int(pid) for pid in listed} - {owner}
    return {pid for pid in children if not is_template(look(pid))}


def is_template(process: Process | None) -> bool:
    """Whether a process is the template of an owner that lives: it stays as long as that does."""
    found = TEMPLATE.search(process.command) if process is not None else None
    if found is None:
        return False
    owner = look(int(found["pid"]))
    return owner is not None and owner.state not in "ZX"


def nothing_but(owner: int, patience: float = PATIENCE) -> list[str]:
    """Wait until nothing is below us but the owner; return what is there when time is over."""
    until = time.monotonic() + patience
    empty = looks = 0
    while True:
        looks += 1
        below = [process for process in below_us(owner) if process.pid != owner]
        left = [process for process in below if not is_template(process)]
        empty = 0 if left or children_but(owner) else empty + 1
        if empty == 3:  # a process that forks all the time can be missed once
            return []
        if time.monotonic() > until and looks > 5:
            found = [f"{p.pid} [{p.state}] {p.command[:250]}" for p in left]
            return found or ["something that forks all the time"]
        time.sleep(0.01)  # the end of a grandchild is no event


# -- a round -------------------------------------------------------------------------------------


def start_and_shut_down() -> None:
    """Do what ends what dead runs have left: start a kernel."""

    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name="snakepit")
        await km.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await km.shutdown_kernel(now=True)

    asyncio.run(scenario())


class Round:
    """One owner, one kill at random, and what is left of it."""

    def __init__(self, seed: str, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.number = number
        self.owns = self.random.choice(["manager", "pool"])
        self.target = self.random.choice(TARGETS)
        self.moment = self.random.choice(list(MOMENTS))
        self.delay = self.random.uniform(0, MOMENTS[self.moment])
        self.follow = self.random.choice(FOLLOWS)
        self.kinds = self.random.sample(list(CHILDREN), 3)
        self.complaints: list[str] = []
        self.heard = ""

    def play(self) -> dict[str, Any]:
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as errors:
            owner = subprocess.Popen(
                [sys.executable, __file__, self.owns, ",".join(self.kinds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            identity = look(owner.pid)
            assert identity is not None
            with owner:
                killed = self.make_havoc(owner)
                self.finish(owner)
            self.look_for_leavings(identity, killed)
            errors.seek(0)
            said = errors.read()[-3000:]
        return {
            "round": self.number,
            "owns": self.owns,
            "target": self.target,
            "moment": self.moment,
            "delay": round(self.delay, 3),
            "follow": self.follow,
            "kinds": self.kinds,
            "killed": killed,
            "complaints": self.complaints,
            "errors": said if self.complaints else "",
            "seconds": round(time.monotonic() - began, 1),
        }

    def make_havoc(self, owner: subprocess.Popen[bytes]) -> list[str]:
        """Kill what is to be killed, at the moment when it is; return what that was."""
        if self.moment != "start":
            self.await_word(owner, "ready")
        if self.moment == "end" and self.follow != "kill":
            self.tell(owner, self.follow)
        time.sleep(self.delay)  # the moment is what is tried
        until = time.monotonic() + 5
        while not (victims := self.find(owner.pid)) and time.monotonic() < until:
            if owner.poll() is not None or (
                self.moment == "end" and self.await_word(owner, "ended", 0)
            ):
                break
        for victim in victims:
            if len(victims) > 1:
                victim.send(signal.SIGSTOP)  # so that none sees another die
        for victim in victims:
            victim.send(signal.SIGKILL)
        return ["owner" if victim.pid == owner.pid else "other" for victim in victims]

    def find(self, owner: int) -> list[Process]:
        processes = below_us(owner)
        guardians = [p for p in processes if GUARDIAN.search(p.command)]
        templates = [p for p in processes if TEMPLATE.search(p.command)]
        kernels = [p for p in processes if KERNEL.search(p.command)]
        itself = [p for p in processes if p.pid == owner]
        if self.target == "owner":
            return itself
        if self.target == "owner and guardian":
            return [*itself, *guardians] if guardians else []
        choice = {"guardian": guardians, "template": templates, "kernel": kernels}[self.target]
        return [self.random.choice(choice)] if choice else []

    def finish(self, owner: subprocess.Popen[bytes]) -> None:
        """Let an owner that still lives go on as was drawn, and see to its end."""
        if self.follow == "kill":
            time.sleep(self.random.uniform(0, 0.3))
            owner.kill()
        elif self.moment != "end":
            self.tell(owner, self.follow)
        ended = self.await_word(owner, "ended", 60)
        if ended:
            self.complaints += [
                f"after the {self.follow}: {p}" for p in nothing_but(owner.pid, 0.1)
            ]
        elif owner.poll() is None and self.heard != "end of file":
            self.complaints.append("the owner hangs")
            owner.kill()
        assert owner.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            owner.stdin.close()
        try:
            owner.wait(30)
        except subprocess.TimeoutExpired:
            self.complaints.append("the owner does not exit")
            owner.kill()
        if owner.returncode not in (0, -signal.SIGKILL):
            self.complaints.append(f"the owner exited with status {owner.returncode}")

    def look_for_leavings(self, owner: Process, killed: list[str]) -> None:
        if "other" in killed:  # with a guardian gone, the next start is what ends the rest
            start_and_shut_down()
        self.complaints += [f"survivor {process}" for process in nothing_but(0)]
        for process in [item for item in below_us(0) if not is_template(item)]:
            process.send(signal.SIGKILL)
        identity = f"{owner.pid}:{owner.start_time}"
        if any(str(run.owner) == identity for run in Registry().runs()):
            start_and_shut_down()
        rows = [run for run in Registry().runs() if str(run.owner) == identity]
        self.complaints += [f"row {run}" for run in rows]
        for path in Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("*"):
            path.unlink()
            # A manager that died with its guardian has told nobody else of this file.
            if "other" not in killed or self.owns == "pool":
                self.complaints.append(f"file {path}")

    @staticmethod
    def tell(owner: subprocess.Popen[bytes], word: str) -> None:
        assert owner.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            owner.stdin.write(f"{word}\n".encode())
            owner.stdin.flush()

    def await_word(self, owner: subprocess.Popen[bytes], word: str, patience: float = 60) -> bool:
        """Wait until the owner says a word; say whether it has."""
        assert owner.stdout is not None
        poll = select.poll()
        poll.register(owner.stdout, select.POLLIN)
        until = time.monotonic() + patience
        while self.heard not in {word, "end of file"}:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return False
            said = os.read(owner.stdout.fileno(), 4096).decode().split()
            self.heard = said[-1] if said else "end of file"
        return self.heard == word


def play_lane(seed: str, first: int, step: int, rounds: int) -> None:
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        sys.exit("prctl(PR_SET_CHILD_SUBREAPER) failed")
    for number in range(first, rounds, step):
        print(json.dumps(Round(seed, number).play()), flush=True)


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "lane":
        play_lane(arguments[0], *map(int, arguments[1:]))
    elif role == "pool":
        own_a_pool(arguments[0])
    else:
        asyncio.run(own_a_kernel(arguments[0]))
