"""What pools of several processes book of one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from snakepit_kernel.pool.resources.machine_budget import (
    MachineReservation,
    describe_machine,
    usable_cores,
    usable_memory,
)
from snakepit_kernel.processes.run_registry import Registry

OTHER = """
import os, sys, time
from snakepit_kernel import Pool
from snakepit_kernel.processes.run_registry import Registry
with Pool({workers}, name="other", max_memory_bytes=2**30) as pool:
    while not any(booking.owner.pid == os.getpid() for booking in Registry().bookings()):
        time.sleep(0.05)
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another notebook, whose pool has one worker more than there are cores."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER.format(workers=usable_cores() + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def book(most: int, *, cores: int, bytes_each: int = 0, memory_bytes: int = 100) -> tuple[str, int]:
    name = f"booking-{time.monotonic_ns()}"
    booked = Registry().book(
        name, "mine", most, bytes_each=bytes_each, cores=cores, memory_bytes=memory_bytes
    )
    return name, booked


def test_a_pool_books_what_others_have_left_and_one_in_any_case():
    names = []
    for most, expected in ((3, 3), (8, 5), (8, 1)):
        name, booked = book(most, cores=8)
        names.append(name)
        assert booked == expected
    Registry().unbook(names[0])
    names[0], booked = book(8, cores=8)
    assert booked == 2
    for name in names:
        Registry().unbook(name)
    assert Registry().bookings() == []


@pytest.mark.parametrize(("bytes_each", "expected"), [(0, 8), (10, 8), (20, 5), (1000, 1)])
def test_memory_limits_how_many_there_are(bytes_each, expected):
    name, booked = book(8, cores=8, bytes_each=bytes_each, memory_bytes=100)
    Registry().unbook(name)

    assert booked == expected


def test_a_pool_of_auto_workers_takes_what_another_notebook_has_left(open_pool, other):
    pool = open_pool("auto")
    assert pool.slots() == [1]
    own = next(each for each in Registry().bookings() if each.owner.pid == os.getpid())
    assert (own.pool, own.workers) == ("default", 1)
    pool.shutdown()

    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert open_pool("auto").slots() == list(range(1, usable_cores() + 1))


def test_the_pools_of_the_machine_are_listed_with_what_they_have_booked(other):
    shown = subprocess.run(
        [sys.executable, "-m", "snakepit_kernel", "status", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    (booking,) = json.loads(shown.stdout)["bookings"]
    workers = usable_cores() + 1
    assert booking == {
        "pool": "other",
        "owner_pid": other.pid,
        "workers": workers,
        "memory_bytes": workers * 2**30,
    }
    assert describe_machine() == (
        f"machine: {workers} workers of 1 pool on {usable_cores()} cores, "
        f"which may take {workers:.1f} of {usable_memory() / 2**30:.1f} GiB"
    )


def test_whoever_books_more_memory_than_there_is_is_warned(caplog):
    reservation = MachineReservation("big", usable_memory())
    reservation.update(1)
    assert not caplog.records

    reservation.update(2)
    reservation.release()

    assert "may take" in caplog.text
    assert Registry().bookings() == []


def test_a_booking_changes_with_the_size_of_its_pool(open_pool):
    pool = open_pool(1)
    pool.resize(3)
    end = time.monotonic() + 10
    while [each.workers for each in Registry().bookings()] != [3]:
        assert time.monotonic() < end
        time.sleep(0.05)

    pool.shutdown()
    assert Registry().bookings() == []
