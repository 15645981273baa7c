"""Watches lanes for an event loop, at no cost for its thread unless something arrives."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Generic, TypeVar

from ..workers.worker import PooledLane

T = TypeVar("T")


class LaneWatch(Generic[T]):
    """Reports the lanes on which something arrives to the event loop that reads its descriptor.

    To let a loop read another descriptor, its thread must be woken, and woken again to stop. Here
    any thread begins and ends the watch of a lane by one system call each: the loop reads the
    descriptor of an epoll object, which watches the lanes.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, T] = {}

    def fileno(self) -> int:
        """Return the file descriptor that is readable when something has arrived on a lane."""
        return self._epoll.fileno()

    def begin(self, lane: PooledLane, item: T) -> bool:
        """Watch a lane until something arrives on it; `arrived` then yields the item.

        Returns
        -------
        bool
            Whether the kernel has room for that.
        """
        descriptor = lane.fileno()
        self._watched[descriptor] = item
        events = select.EPOLLIN | select.EPOLLONESHOT
        try:
            self._epoll.modify(descriptor, events)
        except FileNotFoundError:  # it is watched for the first time
            try:
                self._epoll.register(descriptor, events)
            except OSError:
                del self._watched[descriptor]
                return False
        return True

    def end(self, lane: PooledLane) -> None:
        """Watch a lane no longer; nothing happens if it is not watched."""
        descriptor = lane.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.modify(descriptor, select.EPOLLONESHOT)

    def arrived(self) -> Iterator[T]:
        """Yield the items of the lanes on which something has arrived, and end their watch."""
        for descriptor, _ in self._epoll.poll(0):
            item = self._watched.pop(descriptor, None)
            if item is not None:
                yield item

    def close(self) -> None:
        """Close the descriptor."""
        self._epoll.close()
        self._watched.clear()
