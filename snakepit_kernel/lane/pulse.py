"""The beat by which a worker's owner knows that Python still runs there."""

from __future__ import annotations

import threading
import time

from .page import Slot


def beat(slot: Slot, interval: float) -> None:
    """Count the worker's pulse up from now on, in a thread of its own.

    Parameters
    ----------
    slot
        Where the owner finds it.
    interval
        Seconds between two beats.
    """

    def run() -> None:
        while True:
            slot.pulse += 1
            time.sleep(interval)

    threading.Thread(target=run, name="snakepit-pulse", daemon=True).start()
