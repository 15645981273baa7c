"""What a pool does from time to time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from snakepit_kernel.pool import housekeeping

PATIENCE = 20.0


def test_the_memory_that_large_arguments_took_is_freed_when_a_worker_has_been_idle(
    open_pool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(housekeeping, "STATUS_INTERVAL", 0.05)
    pool = open_pool(1)
    marshaller = pool._engine.supervisor.workers[1].main_lane.marshaller
    assert pool.submit(len, np.zeros(10**6)).result() == 10**6
    assert marshaller.is_warm

    monkeypatch.setattr(housekeeping, "TRIM_AFTER", 0.0)

    until = time.monotonic() + PATIENCE
    while marshaller.is_warm:
        assert time.monotonic() < until
        time.sleep(0.01)  # nobody tells
