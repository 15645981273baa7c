"""Ctrl-C while a pool ends: the end goes on, and whoever asks again waits for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, random, signal, sys, threading, time
from snakepit_kernel import Pool

def interrupted(seconds, work):
    \"\"\"Do some work that Ctrl-C hits after some time; say whether it has.\"\"\"
    def raise_it(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False

def use(pool):
    with pool:
        pass

ends = {"terminate": Pool.terminate, "shutdown": Pool.shutdown, "with": use}
end, rounds = ends[sys.argv[1]], int(sys.argv[2])

def begun():
    pool = Pool(1, grace=0.5)
    code = "import subprocess, sys; c = subprocess.Popen(['sh', '-c', 'trap \\"\\" TERM; " \\
        "while :; do sleep 0.1; done']); c.pid"
    return pool, int(pool.run(code).value), pool.submit(os.getpid).result()

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def threads():
    for thread in threading.enumerate():
        if thread.name == "snakepit-end":
            thread.join(5)  # it has done its work, and may not have ended yet
    return sorted(thread.name for thread in threading.enumerate())

pool, *_ = begun()
pool.terminate()
before = descriptors(), threads()
hits, alive, left = 0, [], []
for number in range(rounds):
    pool, *pids = begun()
    hits += interrupted(0.001 + 0.6 * number / rounds, lambda: end(pool))
    pool.terminate()
    alive += [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    left.append((descriptors() - before[0], [t for t in threads() if t not in before[1]]))
print(json.dumps([hits, alive, left]))
"""


@pytest.mark.parametrize("end", ["terminate", "with"])
def test_a_second_call_after_ctrl_c_waits_for_the_end_and_nothing_leaks(end):
    rounds = 6
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, end, str(rounds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits, alive, left = json.loads(done.stdout)

    assert hits >= rounds / 2, "so little was interrupted that nothing was tested"
    assert alive == []
    assert [number for number, _ in left if number > 0] == []
    assert [names for _, names in left if names] == []
