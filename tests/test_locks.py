"""Locks that Ctrl-C cannot leave locked."""

from __future__ import annotations

import subprocess
import sys

import pytest

INTERRUPTED = """
import signal, threading, time
from snakepit_kernel import locks

lock = locks.{kind}()
interrupts = lost = 0

def interrupt(*_):
    raise KeyboardInterrupt

def take_it_again_and_again():
    while True:
        with lock:
            pass

def is_free():
    said = []
    def ask():
        said.append(lock.acquire(False))
        if said[0]:
            lock.release()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return said[0]

signal.signal(signal.SIGALRM, interrupt)
until = time.monotonic() + 20
while interrupts < 300 and time.monotonic() < until:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        take_it_again_and_again()
    except KeyboardInterrupt:
        interrupts += 1
    if not is_free():
        lost += 1
        lock.release()
print(interrupts > 50, lost)
"""


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])
def test_a_with_statement_that_is_interrupted_anywhere_leaves_the_lock_free(kind):
    command = [sys.executable, "-c", INTERRUPTED.format(kind=kind)]

    assert subprocess.check_output(command, text=True, timeout=60) == "True 0\n"
