"""The page that owner and worker share: it names the call that is to be interrupted.

An interrupt is a signal, and a signal names no call. It may arrive when the call it was meant for
has ended and the next one runs. So the owner writes the id of the call into the page first, and
the worker compares.

A signal can be lost, too: Python acts on it between two steps of the interpreter, and the next step
may be a system call that waits for an hour. So the worker writes down which interrupt it has heard,
and the owner repeats the signal until it has.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_WORD = struct.Struct("<Q")


class Page:
    """One shared page of memory.

    Parameters
    ----------
    descriptor
        File descriptor of the page; the page takes it over.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    @classmethod
    def create(cls) -> Page:
        """Make a new page that has no name in any file system."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("snakepit-page")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return cls(descriptor)

    @property
    def interrupted_call(self) -> int:
        """The id of the call that is to be interrupted, or 0."""
        word: int = _WORD.unpack_from(self._memory)[0]
        return word

    @interrupted_call.setter
    def interrupted_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, 0, call_id)  # 8 aligned bytes: seen whole or not at all

    @property
    def heard_call(self) -> int:
        """The id of the last call of whose interrupt the worker has heard, or 0."""
        word: int = _WORD.unpack_from(self._memory, _WORD.size)[0]
        return word

    @heard_call.setter
    def heard_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, _WORD.size, call_id)

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()
        os.close(self.descriptor)
