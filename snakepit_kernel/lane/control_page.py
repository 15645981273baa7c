"""Shared memory of an owner and a worker: control words, arenas of the lanes, stack dumps.

An interrupt is a signal, and a signal names no call. It may arrive when the call it was meant for
has ended and the next one runs. So the owner writes the id of the call into the page first, and
the worker compares. A signal can be lost, too: Python acts on it between two steps of the
interpreter, and the next step may be a system call that waits for an hour. So the worker records
which interrupt it has acknowledged, and the owner repeats the signal until then.

After the page come the arenas of the lanes, through which large buffers are sent. After those the
worker writes its stacks on request, in C if need be, which works while Python does not run.
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

_WORDS_BYTES = 64
_WORD = struct.Struct("<Q")

MAX_LANES = mmap.PAGESIZE // _WORDS_BYTES
"""Lanes for which one page has room."""

ARENA_BYTES = 1 << 30
"""Size of an arena: bytes in transit or referred to at a time. What does not fit uses the socket.

It costs address space; memory is allocated when it is used.
"""

MAX_STACKS_BYTES = 1 << 16

MAX_FRAMES = 100

STACKS_TIMEOUT = 0.25
"""Seconds to wait for the stacks; writing them takes less than a millisecond."""

STACKS_SIGNAL = signal.SIGRTMAX - 1
"""Makes Python write the stacks. A signal that neither Python nor libraries use."""

NATIVE_STACKS_SIGNAL = signal.SIGRTMAX - 3
"""Makes `faulthandler` write the stacks where Python does not."""


RECALL_SIGNAL = signal.SIGRTMAX - 2
"""Makes the worker return the calls that have not begun."""


class ControlPage:
    """The shared memory of one worker: a page of control words, and what follows it.

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
        """Allocate anonymous memory, which is freed with the processes that use it."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("snakepit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE + 2 * lanes * ARENA_BYTES)
        except OSError:  # a limit on the size of files; then there are no arenas
            os.ftruncate(descriptor, mmap.PAGESIZE)
        if hasattr(os, "memfd_create"):  # access to memory that was cut off would be a SIGBUS
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor, lanes)

    def marshaller(self, number: int, *, is_owner: bool) -> Marshaller:
        """Return the marshaller for one end of one of the worker's lanes."""
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

    def control(self, number: int) -> ControlWords:
        """Return the words of one of the worker's lanes, counted from 0."""
        return ControlWords(self._memory, number)

    def close(self) -> None:
        """Unmap the page. Its arenas must have been closed."""
        if self.descriptor >= 0:
            self._memory.close()
            os.close(self.descriptor)
            self.descriptor = -1

    # -- stacks --------------------------------------------------------------------------------

    def offer_stacks(self) -> None:
        """Install the handlers that write the stacks of this process's threads."""
        signal.signal(STACKS_SIGNAL, self._write_stacks)
        faulthandler.register(NATIVE_STACKS_SIGNAL, file=self.descriptor, all_threads=True)

    def _write_stacks(self, _signum: int, interrupted: FrameType | None) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
        if interrupted is not None:  # else this thread's frame would be the handler's own
            frames[threading.get_ident()] = interrupted
        text = "\n\n".join(_format_stack(thread, frame) for thread, frame in frames.items())
        os.write(self.descriptor, text.encode("utf-8", "replace")[:MAX_STACKS_BYTES])

    def read_stacks(self, ask: Callable[[int], None]) -> str:
        """Return the stacks of all threads of the worker; empty if it writes none.

        Python itself writes them, between two of its steps. Where C code keeps it from that,
        `faulthandler` does: it reads what Python may change meanwhile, which is safe only while
        Python does not run.

        Parameters
        ----------
        ask
            Sends the worker a signal.
        """
        return self._request_stacks(STACKS_SIGNAL, ask) or self._request_stacks(
            NATIVE_STACKS_SIGNAL, ask
        )

    def _request_stacks(self, signum: int, ask: Callable[[int], None]) -> str:
        # Both processes share one position in the file: the worker's writes move it.
        end = os.lseek(self.descriptor, self._stacks_at, os.SEEK_SET)
        until = time.monotonic() + STACKS_TIMEOUT
        ask(signum)
        while time.monotonic() < until:
            # The handler in C does not signal its end; all that can be seen is that it has stopped
            # writing.
            time.sleep(0.002)
            last, end = end, os.lseek(self.descriptor, 0, os.SEEK_CUR)
            if end > self._stacks_at and end == last:
                break
        size = min(end - self._stacks_at, MAX_STACKS_BYTES)
        return os.pread(self.descriptor, size, self._stacks_at).decode("utf-8", "replace")


def _format_stack(thread: int, frame: FrameType | None) -> str:
    """Format a thread's stack like `faulthandler`."""
    lines = [f"Thread 0x{thread:016x} (most recent call first):"]
    while frame is not None and len(lines) <= MAX_FRAMES:
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
        frame = frame.f_back
    return "\n".join(lines)


class ControlWords:
    """The control words of one lane. Each has one writer, and is read and written atomically.

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
        self._at = number * _WORDS_BYTES

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
        """The id of the last call whose interrupt the worker has acknowledged, or 0."""
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
        """The id up to which the owner wants unstarted calls returned.

        The signal may come late, when other calls have been sent, which are not to be returned.
        """
        word: int = _WORD.unpack_from(self._memory, self._at + 32)[0]
        return word

    @recalled_call.setter
    def recalled_call(self, call_id: int) -> None:
        _WORD.pack_into(self._memory, self._at + 32, call_id)

    @property
    def pulse(self) -> int:
        """A counter that the worker increments while Python runs there; 0 before the first beat."""
        word: int = _WORD.unpack_from(self._memory, self._at + 40)[0]
        return word

    @pulse.setter
    def pulse(self, count: int) -> None:
        _WORD.pack_into(self._memory, self._at + 40, count)
