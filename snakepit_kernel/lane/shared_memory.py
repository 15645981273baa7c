"""Transfer of large buffers through shared memory: one copy to send, none to receive.

An arena is a part of an anonymous file (a memfd) that two processes map. One of them writes buffers
into it, the other views them in place. It begins with a page of words, one word for each region of
memory that is in use. The writer sets it to the region's ticket, and the reader to 0 when nothing
refers to the region any more, so no message is needed to release it.

The main cost is not the copy but the first touch of a page. So a region is allocated at the lowest
address where it fits: there the pages exist, and both processes have them mapped.

The user of a view may write to it without affecting the other process: views are private mappings,
in which a page is copied when it is first written to. Those copies are dropped with the view, so
that the next buffer in that region is seen as it was sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import sys
import weakref
from typing import Any

import msgspec

SHARE_FROM_BYTES = 1 << 18
"""Buffers from this size on are cheaper through an arena than through the socket.

Below, a region, a view and its finalizer cost as much as they save: Python code that runs just
after a wait finds the caches cold. Above, the socket copies twice, into new memory that faults page
by page: at 1 MiB the arena is 2.5 times as fast, at 100 MB 10 times.
"""

TRIM_AFTER = 10.0
"""Seconds without a call after which an arena releases its unused memory."""

_PAGE = mmap.PAGESIZE
_SLOTS = _PAGE // 8
_MADV_POPULATE_READ = 22  # since Linux 5.14; Python has no name for it
_PRIVATE = mmap.MAP_PRIVATE | 0x4000  # MAP_NORESERVE, which Python has a name for since 3.13


class Region(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Position of a buffer in an arena.

    Attributes
    ----------
    offset
        First byte, counted from the first region.
    length
        Number of bytes.
    ticket
        Number of the region, unique in this arena for all time.
    """

    offset: int
    length: int
    ticket: int


class ArenaWriter:
    """The writing end of an arena. One thread at a time uses it.

    Parameters
    ----------
    descriptor
        The file. The caller keeps it, and closes the writer first.
    offset
        Where in the file the arena begins, in whole pages.
    limit_bytes
        Size of the arena, in whole pages. The file must be as long; memory is allocated when it is
        used.
    """

    def __init__(self, descriptor: int, offset: int, limit_bytes: int) -> None:
        self._mapping = _Mapping(descriptor, offset, limit_bytes)
        self._serials = itertools.count(1)
        self._allocations: list[
            _Allocation
        ] = []  # by address; replaced, not changed, so Ctrl-C may come
        self._warm = bytearray()  # for each page: whether it exists and is mapped here

    def place(self, buffer: memoryview) -> Region | None:
        """Copy a buffer into the arena.

        Other threads run meanwhile. After an exception (Ctrl-C) the region is free again.

        Parameters
        ----------
        buffer
            Contiguous.

        Returns
        -------
        place
            Its region, in use until the reader releases it; None if there is no room in the arena,
            or no memory.
        """
        if not self._is_ready():
            return None
        buffer = buffer.cast("B")
        allocation = self._allocate(len(buffer))
        if allocation is None or not self._fill(allocation, buffer):
            return None
        self._mapping.words[allocation.slot] = allocation.ticket  # from here on it is in use
        return Region(allocation.first * _PAGE, len(buffer), allocation.ticket)

    def reclaim(self, place: Region) -> None:
        """Free a region that was not sent to the reader."""
        self._mapping.words[self._allocation_of(place).slot] = 0

    def view(self, place: Region) -> memoryview:
        """View a buffer that the reader refers to, instead of receiving a copy of it.

        It must be called before the next `place` or `trim`, which may reuse the region.

        Returns
        -------
        view
            The caller's own: writing to it changes nothing else. The region stays in use while
            anything in this process refers to the view.

        Raises
        ------
        ValueError
            No such region is in use.
        """
        allocation = self._allocation_of(place)
        try:
            mapped = self._mapping.map_privately(place)
        except OSError:  # no address space is left
            return memoryview(self._mapping.copy(place))
        allocation.views = [*allocation.living_views(), weakref.ref(mapped)]
        skipped = place.offset % _PAGE
        return memoryview(mapped).cast("B")[skipped : skipped + place.length]

    def trim(self) -> None:
        """Release the memory of free regions to the system."""
        self._allocations = allocations = self._in_use()
        begins = [0, *(allocation.last for allocation in allocations)]
        ends = [*(allocation.first for allocation in allocations), len(self._warm)]
        for begin, end in zip(begins, ends, strict=True):
            first = self._warm.find(1, begin, end)
            if first >= 0:
                self._discard(first, self._warm.rfind(1, begin, end) + 1)

    @property
    def used_bytes(self) -> int:
        """Memory of regions that either process refers to."""
        return sum(allocation.last - allocation.first for allocation in self._in_use()) * _PAGE

    @property
    def held_bytes(self) -> int:
        """Memory that the arena has allocated from the system."""
        return self._warm.count(1) * _PAGE

    def map(self) -> None:
        """Map the arena now, and not when it is first needed."""
        self._mapping.map()

    def close(self) -> None:
        """Unmap the arena, as soon as no view needs it. Views stay valid."""
        self._allocations = []
        self._warm = bytearray()
        self._mapping.close()

    def _is_ready(self) -> bool:
        """Map the arena if it is not mapped; return whether there was memory for it."""
        if not self._warm:
            try:
                self._mapping.allocate_words()
                self._warm = bytearray(len(self._mapping.memory) // _PAGE - 1)
            except OSError:
                return False
        return True

    def _allocate(self, length: int) -> _Allocation | None:
        """Allocate the first gap that is large enough. It is free again if its word stays 0."""
        self._allocations = allocations = self._in_use()
        pages = -(-length // _PAGE) or 1
        first = index = 0
        for allocation in allocations:
            if allocation.first - first >= pages:
                break
            first = allocation.last
            index += 1
        last = first + pages
        if last > len(self._warm) or len(allocations) == _SLOTS:
            return None
        allocation = _Allocation(
            first, last, length, next(self._serials) * _SLOTS + _free_slot(allocations)
        )
        self._allocations = [*allocations[:index], allocation, *allocations[index:]]
        return allocation

    def _fill(self, allocation: _Allocation, buffer: memoryview) -> bool:
        """Copy a buffer into a region; return whether there was memory for it."""
        first, last = allocation.first, allocation.last
        cold = self._warm.find(0, first, last)
        warm_bytes = len(buffer) if cold < 0 else (cold - first) * _PAGE
        target = self._mapping.address + first * _PAGE
        ctypes.memmove(target, _address_of(buffer), warm_bytes)  # without the GIL
        return cold < 0 or self._fill_new_pages(cold, last, buffer[warm_bytes:])

    def _fill_new_pages(self, first: int, last: int, rest: memoryview) -> bool:
        """Write to pages that may not exist yet.

        A system call makes them, for half of what faults would cost. When memory has run out it
        fails with an error, where touching the mapping would be a SIGBUS.
        """
        try:
            self._mapping.write(first * _PAGE, rest)
        except OSError:
            self._discard(first, last)
            return False
        with contextlib.suppress(OSError):  # an older kernel; then each page faults once
            self._mapping.advise(_MADV_POPULATE_READ, first, last)
        self._warm[first:last] = b"\1" * (last - first)
        return True

    def _discard(self, first: int, last: int) -> None:
        """Remove pages. They read as zeros in both processes, and exist again when written."""
        self._warm[first:last] = bytes(last - first)
        self._mapping.advise(mmap.MADV_REMOVE, first, last)

    def _in_use(self) -> list[_Allocation]:
        if not self._allocations:
            return []
        words = self._mapping.words
        return [
            allocation
            for allocation in self._allocations
            if words[allocation.slot] or allocation.living_views()
        ]

    def _allocation_of(self, place: Region) -> _Allocation:
        for allocation in self._allocations:
            if allocation.ticket == place.ticket and allocation.holds(place.offset, place.length):
                return allocation
        raise ValueError(f"{place} is no place in use")


class ArenaReader:
    """The reading end of an arena. One thread at a time uses it; any thread may drop views.

    In a forked child, the buffers of inherited views may change once the parent has dropped its own
    views: only the parent releases regions.

    Parameters
    ----------
    descriptor
        The file. The caller keeps it, and closes the reader first.
    offset
        Where in the file the arena begins, as the writer has it.
    limit_bytes
        Size of the arena, as the writer has it.
    """

    def __init__(self, descriptor: int, offset: int, limit_bytes: int) -> None:
        self._mapping = _PrivateMapping(descriptor, offset, limit_bytes)
        self._viewed: dict[int, Region] = {}

    def view(self, place: Region) -> memoryview:
        """View a buffer that has arrived.

        Returns
        -------
        view
            The caller's own: writing to it changes nothing else. The region is released when
            nothing refers to the view any more: no array on it, no slice of it, nothing made from
            those. It stays valid when the reader is closed and when the peer has died.

        Raises
        ------
        ValueError
            No such region is in use.
        OSError
            The arena cannot be mapped.
        """
        if not 0 <= place.offset <= place.offset + place.length <= self._mapping.room_bytes:
            raise ValueError(f"{place} is out of bounds")
        words = self._mapping.words
        if place.ticket < _SLOTS or words[place.ticket % _SLOTS] != place.ticket:
            raise ValueError(f"{place} is no place in use")
        if place.ticket in self._viewed:
            raise ValueError(f"{place} has come before")
        anchor = self._mapping.anchor()
        pages, ticket = self._mapping.pages(place), place.ticket
        last = weakref.finalize(anchor, _release, self._viewed, pages, words, ticket, os.getpid())
        last.atexit = False
        self._viewed[place.ticket] = place
        view = memoryview(anchor).cast("B")
        return view[place.offset : place.offset + place.length]

    def find(self, buffer: memoryview) -> Region | None:
        """Find the region of a buffer, so that it is sent back by reference.

        Parameters
        ----------
        buffer
            Contiguous. The caller may drop it once the region has been sent.

        Returns
        -------
        place
            None if it is not part of a view of this reader, or was written to since.
        """
        if not self._viewed:
            return None
        offset = _address_of(buffer) - self._mapping.address
        if not 0 <= offset < self._mapping.room_bytes:
            return None
        for whole in self._viewed.copy().values():  # a finalizer may change it now
            if whole.offset <= offset < whole.offset + whole.length:
                place = Region(offset, buffer.nbytes, whole.ticket)
                return None if self._mapping.pages(place).were_written() else place
        return None

    def map(self) -> None:
        """Map the arena now, and not when it is first needed."""
        self._mapping.map()

    def close(self) -> None:
        """Unmap the arena, as soon as no view needs it. Views stay valid."""
        self._viewed = {}
        self._mapping.close()


class _Allocation:
    """The pages `first` to `last`, exclusive, which hold one buffer."""

    __slots__ = ("first", "last", "length", "slot", "ticket", "views")

    def __init__(self, first: int, last: int, length: int, ticket: int) -> None:
        self.first = first
        self.last = last
        self.length = length
        self.ticket = ticket
        self.slot = ticket % _SLOTS
        self.views: list[weakref.ref[Any]] = []  # of the writer's process

    def living_views(self) -> list[weakref.ref[Any]]:
        return [view for view in self.views if view() is not None]

    def holds(self, offset: int, length: int) -> bool:
        start = self.first * _PAGE
        return start <= offset <= offset + length <= start + self.length


class _Mapping:
    """The arena's part of the file, mapped: a page of words, then room for regions.

    It is mapped when it is first needed, because most workers never need it.
    """

    def __init__(self, descriptor: int, offset: int, limit_bytes: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.room_bytes = limit_bytes - _PAGE

    @functools.cached_property
    def memory(self) -> mmap.mmap:
        if self._descriptor < 0:
            raise ValueError("the arena is closed")
        return mmap.mmap(self._descriptor, _PAGE + self.room_bytes, offset=self._offset)

    def map(self) -> None:
        """Map it now."""
        assert len(self.memory) == _PAGE + self.room_bytes

    @functools.cached_property
    def words(self) -> memoryview:
        return memoryview(self.memory)[:_PAGE].cast("Q")  # aligned: seen whole or not at all

    @functools.cached_property
    def address(self) -> int:
        return ctypes.addressof(self.anchor())

    def anchor(self) -> Any:
        """Return a new object that lives as long as anything that views the room through it.

        A weak reference to a memoryview would not do: slices and arrays outlive the memoryview they
        were made from. ctypes keeps every array type for ever, so all are of one length.

        The garbage collector must not see the object. It clears the weak references to all of a
        cycle before it calls the first ``__del__`` there, which may still read the memory, or even
        resurrect it. Untracked, the object is freed when its last referrer is.
        """
        anchor = (ctypes.c_ubyte * self.room_bytes).from_buffer(self.memory, _PAGE)
        _untrack(anchor)
        return anchor

    def allocate_words(self) -> None:
        """Allocate the page of words, so that it can be touched when memory has run out."""
        os.posix_fallocate(self._descriptor, self._offset, _PAGE)

    def write(self, start: int, buffer: memoryview) -> None:
        """Write to the room by system calls.

        Raises
        ------
        OSError
            There is no memory for it. Some pages may have been allocated.
        """
        while buffer:
            count = os.pwrite(self._descriptor, buffer, self._offset + _PAGE + start)
            buffer = buffer[count:]
            start += count

    def advise(self, option: int, first: int, last: int) -> None:
        """Call ``madvise`` for pages of the room."""
        self.memory.madvise(option, _PAGE + first * _PAGE, (last - first) * _PAGE)

    def map_privately(self, place: Region) -> Any:
        """Map a buffer copy-on-write, from the beginning of its first page.

        Raises
        ------
        OSError
            There is no address space for it.
        """
        skipped = place.offset % _PAGE
        begin = self._offset + _PAGE + place.offset - skipped
        return _mapped(self._descriptor, skipped + place.length, begin, _PRIVATE)

    def copy(self, place: Region) -> bytearray:
        """Return a copy of a buffer."""
        start = _PAGE + place.offset
        return bytearray(memoryview(self.memory)[start : start + place.length])

    def close(self) -> None:
        """Drop the mapping. It is unmapped when no view needs it; closing would fail until then."""
        self._descriptor = -1
        for name in ("memory", "words", "address"):
            self.__dict__.pop(name, None)


class _PrivateMapping(_Mapping):
    """The mapping of the reading end: the words are shared, the room is copy-on-write."""

    @functools.cached_property
    def memory(self) -> mmap.mmap:
        if self._descriptor < 0:
            raise ValueError("the arena is closed")
        length = _PAGE + self.room_bytes
        access = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self._descriptor, length, _PRIVATE, access, offset=self._offset)

    @functools.cached_property
    def words(self) -> memoryview:
        assert self.memory  # raises if it is closed
        page = _mapped(self._descriptor, _PAGE, self._offset, mmap.MAP_SHARED)
        return memoryview(page).cast("B").cast("Q")

    def map(self) -> None:
        """Map it now."""
        super().map()
        assert len(self.words) == _SLOTS

    def pages(self, place: Region) -> _Pages:
        """Return the pages that contain a buffer."""
        first = place.offset // _PAGE
        last = -(-(place.offset + place.length) // _PAGE)
        return _Pages(self.memory, self.address, first, last)


def _mapped(descriptor: int, length: int, offset: int, flags: int) -> Any:
    """Map a part of a file; return an array, at least as long, that owns the mapping.

    Python's own `mmap` keeps a descriptor open for each mapping.

    Raises
    ------
    OSError
        There is no address space for it.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _mmap(None, length, access, flags, descriptor, offset)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    anchor = _bytes_of(1 << (length - 1).bit_length()).from_address(address)
    weakref.finalize(anchor, _munmap, address, length).atexit = False
    _untrack(anchor)
    return anchor


@functools.cache
def _bytes_of(length: int) -> Any:
    return ctypes.c_ubyte * length


class _Pages:
    """Pages of a private mapping, which become copies when they are written to."""

    __slots__ = ("_address", "_first", "_last", "_memory")

    def __init__(self, memory: mmap.mmap, address: int, first: int, last: int) -> None:
        self._memory = memory
        self._address = address
        self._first = first
        self._last = last

    def were_written(self) -> bool:
        """Whether any was written to, or that cannot be determined."""
        begin = self._address // _PAGE + self._first
        count = self._last - self._first
        try:
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                entries = os.pread(pagemap, count * 8, begin * 8)
            finally:
                os.close(pagemap)
        except OSError:
            return True
        # The flags are in the highest byte of an entry's 8: the last one on little endian machines.
        flags = entries[7 if sys.byteorder == "little" else 0 :: 8]
        return len(flags) != count or flags.translate(_IS_COPY).find(1) >= 0

    def restore(self) -> None:
        """Drop the copies that were written to.

        Raises
        ------
        OSError
            The process has locked its memory.
        """
        if self._last > self._first and self.were_written():
            length = (self._last - self._first) * _PAGE
            self._memory.madvise(mmap.MADV_DONTNEED, _PAGE + self._first * _PAGE, length)


_PRESENT, _SWAPPED, _FILE_BACKED = 0x80, 0x40, 0x20  # Documentation/admin-guide/mm/pagemap.rst
_IS_COPY = bytes(
    bool(flags & _SWAPPED or (flags & _PRESENT and not flags & _FILE_BACKED))
    for flags in range(256)
)


def _free_slot(allocations: list[_Allocation]) -> int:
    taken = {allocation.slot for allocation in allocations}
    slot = 0
    while slot in taken:
        slot += 1
    return slot


def _release(
    viewed: dict[int, Region], pages: _Pages, words: memoryview, ticket: int, pid: int
) -> None:
    """Release a region of the reader. It runs in any thread, at any moment."""
    if os.getpid() != pid:  # a forked child has dropped its copy of the view; the parent has not
        return
    viewed.pop(ticket, None)
    if words[ticket % _SLOTS] == ticket:
        try:
            pages.restore()
        except OSError:
            return  # the region stays in use: the next view of it would show what was written
        words[ticket % _SLOTS] = 0


class _Buffer(ctypes.Structure):
    """The first field of C's ``Py_buffer``, and space for the rest."""

    _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_ssize_t * 9))


_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)
_mmap.restype = ctypes.c_void_p
_MAP_FAILED = ctypes.c_void_p(-1).value
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_untrack = ctypes.pythonapi.PyObject_GC_UnTrack
_untrack.argtypes = (ctypes.py_object,)
_untrack.restype = None
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None


def _address_of(buffer: memoryview) -> int:
    """Return the address of the first byte, also of read-only buffers, which ctypes rejects."""
    found = _Buffer()
    _get_buffer(buffer, found, 0)
    address: int = found.address or 0
    _release_buffer(found)
    return address
