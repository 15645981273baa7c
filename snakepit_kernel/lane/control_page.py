"""The memory that owner and worker share beside their lanes.

An interrupt is a signal, and a signal names no call. It may arrive when the call it was meant for
has ended and the next one runs. So the owner writes the id of the call into the page first, and
the worker compares. A signal can be lost, too: Python acts on it between two steps of the
interpreter, and the next step may be a system call that waits for an hour. So the worker writes
down which interrupt it has heard, and the owner repeats the signal until it has.

Behind the page lie the arenas of the lanes, in which large buffers travel. Behind those the worker
writes its stacks when it is asked to, in C if need be, which works while Python does not.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import FrameType

from .marshalling import Marshaller
from .shared_memory import ArenaReader, ArenaWriter

_SLOT_BYTES = 64
_WORD = struct.Struct("<Q")

MAX_LANES = mmap.PAGESIZE // _SLOT_BYTES
"""Lanes that one page serves."""

ARENA_BYTES = 1 << 30
"""Size of an arena: what may be on its way, or referred to, at a time. Else it goes by the socket.

It costs address space; memory is taken when it is used.
"""

MAX_STACKS_BYTES = 1 << 16

MAX_FRAMES = 100

STACKS_PATIENCE = 0.25
"""Seconds that the writing of the stacks may take; it takes less than a millisecond."""

STACKS_SIGNAL = signal.SIGRTMAX - 1
"""Asks Python for the stacks. A signal that neither Python nor libraries use."""

STACKS_IN_C_SIGNAL = signal.SIGRTMAX - 3
"""Asks for the stacks where Python does not answer."""


RECALL_SIGNAL = signal.SIGRTMAX - 2
"""Asks for the calls back that have not begun."""


class ControlPage:
    """One shared page of memory, and what lies behind it.

    Parameters
    ----------
    descriptor
        File descriptor of the memory; the page takes it over.
    lanes
        Number of the worker's lanes.
    """

    def __init__(self, descriptor: int, lanes: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._stacks_at = mmap.PAGESIZE + 2 * lanes * ARENA_BYTES
        self._has_arenas = os.fstat(descriptor).st_size >= self._stacks_at

    @classmethod
    def create(cls, lanes: int) -> ControlPage:
        """Make new memory that has no name in any file system, and goes with its processes."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("snakepit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE + 2 * lanes * ARENA_BYTES)
        except OSError:  # a limit on the size of files; then there are no arenas
            os.ftruncate(descriptor, mmap.PAGESIZE)
        if hasattr(os, "memfd_create"):  # memory that went away would kill who touches it
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor, lanes)

    def marshaller(self, number: int, *, is_owner: bool) -> Marshaller:
        """Return how values travel on one of the worker's lanes, for one of its ends."""
        if not self._has_arenas:
            return Marshaller(None, None)
        to_worker = mmap.PAGESIZE + 2 * number * ARENA_BYTES
        to_owner = to_worker + ARENA_BYTES
        if is_owner:
            to_worker, to_owner = to_owner, to_worker
        return Marshaller(
            ArenaWriter(self.descriptor, to_owner, ARENA_BYTES),
            ArenaReader(self.descriptor, to_worker, ARENA_BYTES),
        )

    def slot(self, number: int) -> ControlWords:
        """Return what belongs to one of the worker's lanes, counted from 0."""
        return ControlWords(self._memory, number)

    def close(self) -> None:
        """Unmap the page. Arenas are closed before."""
        if self.descriptor >= 0:
            self._memory.close()
            os.close(self.descriptor)
            self.descriptor = -1

    # -- stacks --------------------------------------------------------------------------------

    def offer_stacks(self) -> None:
        """Have the stacks of this process's threads written whenever one of the signals comes."""
        signal.signal(STACKS_SIGNAL, self._write_stacks)
        faulthandler.register(STACKS_IN_C_SIGNAL, file=self.descriptor, all_threads=True)

    def _write_stacks(self, _signum: int, interrupted: FrameType | None) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
        if interrupted is not None:  # that of this thread is the handler's own
            frames[threading.get_ident()] = interrupted
        text = "\n\n".join(_described(thread, frame) for thread, frame in frames.items())
        os.write(self.descriptor, text.encode("utf-8", "replace")[:MAX_STACKS_BYTES])

    def read_stacks(self, ask: Callable[[int], None]) -> str:
        """Return the stacks of all threads of the worker; empty when none come.

        Python itself writes them, between two of its steps. Where it does not come to that, because
        code in C goes on and on, `faulthandler` does: it reads what Python changes meanwhile, which
        is safe only where Python stands still.

        Parameters
        ----------
        ask
            Sends the worker a signal.
        """
        return self._written(STACKS_SIGNAL, ask) or self._written(STACKS_IN_C_SIGNAL, ask)

    def _written(self, signum: int, ask: Callable[[int], None]) -> str:
        # Both processes have one position in the file: what the worker writes moves it.
        end = os.lseek(self.descriptor, self._stacks_at, os.SEEK_SET)
        until = time.monotonic() + STACKS_PATIENCE
        ask(signum)
        while time.monotonic() < until:
            # The handler in C tells nobody when it has finished; that it has stopped is all there
            # is to see.
            time.sleep(0.002)
            last, end = end, os.lseek(self.descriptor, 0, os.SEEK_CUR)
            if end > self._stacks_at and end == last:
                break
        size = min(end - self._stacks_at, MAX_STACKS_BYTES)
        return os.pread(self.descriptor, size, self._stacks_at).decode("utf-8", "replace")


def _described(thread: int, frame: FrameType | None) -> str:
    """Describe where a thread is, in the words of `faulthandler`."""
    lines = [f"Thread 0x{thread:016x} (most recent call first):"]
    while frame is not None and len(lines) <= MAX_FRAMES:
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
        frame = frame.f_back
    return "\n".join(lines)


class ControlWords:
    """The words of one lane. Each has one writer, and is seen whole or not at all.

    Parameters
    ----------
    memory
        The page.
    number
        Number of the lane.
    """

    __slots__ = ("_at", "_memory")

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        self._at = number * _SLOT_BYTES

    @property
    def interrupted_call(self) -> int:
        """The id of the call that is to be interrupted, or 0."""
        word: int = _WORD.unpack_from(self._memory, self._at)[0]
        return word

    @interrupted_call.setter
    def interrupted_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, self._at, call_id)

    @property
    def acknowledged_call(self) -> int:
        """The id of the last call of whose interrupt the worker has heard, or 0."""
        word: int = _WORD.unpack_from(self._memory, self._at + 8)[0]
        return word

    @acknowledged_call.setter
    def acknowledged_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, self._at + 8, call_id)

    @property
    def left_call(self) -> int:
        """The id of the last stream that its consumer has left, or 0."""
        word: int = _WORD.unpack_from(self._memory, self._at + 16)[0]
        return word

    @left_call.setter
    def left_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, self._at + 16, call_id)

    @property
    def serves_cell(self) -> bool:
        """Whether the owner serves the host calls of the cell that runs."""
        return bool(_WORD.unpack_from(self._memory, self._at + 24)[0])

    @serves_cell.setter
    def serves_cell(self, is_served: bool) -> None:
        _WORD.pack_into(self._memory, self._at + 24, is_served)

    @property
    def recalled_call(self) -> int:
        """The id up to which the owner wants the calls back that have not begun.

        The signal may come late, when others have been sent: those are not meant.
        """
        word: int = _WORD.unpack_from(self._memory, self._at + 32)[0]
        return word

    @recalled_call.setter
    def recalled_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, self._at + 32, call_id)

    @property
    def pulse(self) -> int:
        """A number that the worker counts up while Python runs there; 0 before it has begun."""
        word: int = _WORD.unpack_from(self._memory, self._at + 40)[0]
        return word

    @pulse.setter
    def pulse(self, count: int) -> None:
        _WORD.pack_into(self._memory, self._at + 40, count)
