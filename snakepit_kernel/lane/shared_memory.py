"""Shared memory in which large buffers travel: one copy to send, none to receive.

An arena is a part of a file that has no name (a memfd) and that two processes map. One of them
writes buffers into it, the other looks at them where they lie. A page of words comes first, one
word for each region of memory that is in use. The writer sets it to the region's ticket, and the
reader to 0 when nothing refers to the region any more, so no message is needed to give it back.

What costs is not the copy but the page that is touched for the first time. So a region is taken at
the lowest address where it fits: there the pages exist, and both processes have them mapped.

Who looks at a buffer may write to it, and nobody else sees that: users have mappings of their own,
in which a page is copied when it is first written to. What was written goes with the view, so that
the next buffer at that place is seen as it was sent.
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

Below, a region, a view and its finalizer cost as much as what they save: Python that runs just
after a wait finds nothing in the caches. Above, the socket copies twice, into memory that is new
and faults page by page: at 1 MiB the arena is 2.5 times as fast, at 100 MB 10 times.
"""

TRIM_AFTER = 10.0
"""Seconds without a call after which an arena gives its memory back."""

_PAGE = mmap.PAGESIZE
_SLOTS = _PAGE // 8
_MADV_POPULATE_READ = 22  # since Linux 5.14; Python has no name for it
_PRIVATE = mmap.MAP_PRIVATE | 0x4000  # MAP_NORESERVE, which Python has a name for since 3.13


class Region(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where in an arena a buffer lies.

    Attributes
    ----------
    offset
        First byte, counted from the first region.
    length
        Number of bytes.
    ticket
        Number of the region. No other region of this arena has it, before or after.
    """

    offset: int
    length: int
    ticket: int


class ArenaWriter:
    """The end of an arena that writes. One thread at a time uses it.

    Parameters
    ----------
    descriptor
        The file. It stays the caller's, who closes the writer first.
    offset
        Where in the file the arena begins, in whole pages.
    limit_bytes
        Size of the arena, in whole pages. The file must be as long; memory is taken when it is
        used.
    """

    def __init__(self, descriptor: int, offset: int, limit_bytes: int) -> None:
        self._part = _Part(descriptor, offset, limit_bytes)
        self._serials = itertools.count(1)
        self._regions: list[_Region] = []  # by address; replaced, not changed, so Ctrl-C may come
        self._warm = bytearray()  # for each page: whether it exists and is mapped here

    def place(self, buffer: memoryview) -> Region | None:
        """Copy a buffer into the arena.

        Other threads run meanwhile. After an exception (Ctrl-C) the room is free again.

        Parameters
        ----------
        buffer
            Contiguous.

        Returns
        -------
        place
            Where it lies, until the reader has seen it and needs it no more; None if there is no
            room in the arena, or no memory.
        """
        if not self._is_ready():
            return None
        buffer = buffer.cast("B")
        region = self._take(len(buffer))
        if region is None or not self._fill(region, buffer):
            return None
        self._part.words[region.slot] = region.ticket  # from here on it is in use
        return Region(region.first * _PAGE, len(buffer), region.ticket)

    def withdraw(self, place: Region) -> None:
        """Take back a place that no message has carried to the reader."""
        self._part.words[self._region_of(place).slot] = 0

    def view(self, place: Region) -> memoryview:
        """Look at a buffer that the reader refers to, instead of having it sent back.

        It must be called before the next `place` or `trim`, which may use the region again.

        Returns
        -------
        view
            The caller's own: what is written to it changes nothing else. The region stays as it is
            while anything here refers to the view.

        Raises
        ------
        ValueError
            No such place is in use.
        """
        region = self._region_of(place)
        try:
            mapped = self._part.map_privately(place)
        except OSError:  # no address space is left
            return memoryview(self._part.copy(place))
        region.views = [*region.living_views(), weakref.ref(mapped)]
        skipped = place.offset % _PAGE
        return memoryview(mapped).cast("B")[skipped : skipped + place.length]

    def trim(self) -> None:
        """Give the memory of free regions back to the system."""
        self._regions = regions = self._in_use()
        begins = [0, *(region.last for region in regions)]
        ends = [*(region.first for region in regions), len(self._warm)]
        for begin, end in zip(begins, ends, strict=True):
            first = self._warm.find(1, begin, end)
            if first >= 0:
                self._discard(first, self._warm.rfind(1, begin, end) + 1)

    @property
    def used_bytes(self) -> int:
        """Memory of regions that either process refers to."""
        return sum(region.last - region.first for region in self._in_use()) * _PAGE

    @property
    def held_bytes(self) -> int:
        """Memory that the arena has taken from the system."""
        return self._warm.count(1) * _PAGE

    def map(self) -> None:
        """Take the address space now, and not when it is first needed."""
        self._part.map()

    def close(self) -> None:
        """Unmap the arena, as soon as no view needs it. Views stay valid."""
        self._regions = []
        self._warm = bytearray()
        self._part.close()

    def _is_ready(self) -> bool:
        """Map the arena if it is not; say whether there was memory for it."""
        if not self._warm:
            try:
                self._part.allocate_words()
                self._warm = bytearray(len(self._part.memory) // _PAGE - 1)
            except OSError:
                return False
        return True

    def _take(self, length: int) -> _Region | None:
        """Reserve the first gap that is large enough. It is free again if its word stays 0."""
        self._regions = regions = self._in_use()
        pages = -(-length // _PAGE) or 1
        first = index = 0
        for region in regions:
            if region.first - first >= pages:
                break
            first = region.last
            index += 1
        last = first + pages
        if last > len(self._warm) or len(regions) == _SLOTS:
            return None
        region = _Region(first, last, length, next(self._serials) * _SLOTS + _free_slot(regions))
        self._regions = [*regions[:index], region, *regions[index:]]
        return region

    def _fill(self, region: _Region, buffer: memoryview) -> bool:
        """Copy a buffer into a region; say whether there was memory for it."""
        first, last = region.first, region.last
        cold = self._warm.find(0, first, last)
        warm_bytes = len(buffer) if cold < 0 else (cold - first) * _PAGE
        target = self._part.address + first * _PAGE
        ctypes.memmove(target, _address_of(buffer), warm_bytes)  # without the GIL
        return cold < 0 or self._fill_new_pages(cold, last, buffer[warm_bytes:])

    def _fill_new_pages(self, first: int, last: int, rest: memoryview) -> bool:
        """Write to pages that may not exist yet.

        A system call makes them, for half of what faults would cost, and when memory has run out it
        is an error, where a touch of the mapping would be a SIGBUS.
        """
        try:
            self._part.write(first * _PAGE, rest)
        except OSError:
            self._discard(first, last)
            return False
        with contextlib.suppress(OSError):  # an older kernel; then each page faults once
            self._part.advise(_MADV_POPULATE_READ, first, last)
        self._warm[first:last] = b"\1" * (last - first)
        return True

    def _discard(self, first: int, last: int) -> None:
        """Remove pages. They read as zeros in both processes, and exist again when written."""
        self._warm[first:last] = bytes(last - first)
        self._part.advise(mmap.MADV_REMOVE, first, last)

    def _in_use(self) -> list[_Region]:
        if not self._regions:
            return []
        words = self._part.words
        return [region for region in self._regions if words[region.slot] or region.living_views()]

    def _region_of(self, place: Region) -> _Region:
        for region in self._regions:
            if region.ticket == place.ticket and region.holds(place.offset, place.length):
                return region
        raise ValueError(f"{place} is no place in use")


class ArenaReader:
    """The end of an arena that reads. One thread at a time uses it; views are dropped in any.

    The child of a fork sees what it refers to change, once its parent has dropped it: the parent
    speaks for both of them.

    Parameters
    ----------
    descriptor
        The file. It stays the caller's, who closes the reader first.
    offset
        Where in the file the arena begins, as the writer has it.
    limit_bytes
        Size of the arena, as the writer has it.
    """

    def __init__(self, descriptor: int, offset: int, limit_bytes: int) -> None:
        self._part = _PrivatePart(descriptor, offset, limit_bytes)
        self._held: dict[int, Region] = {}

    def view(self, place: Region) -> memoryview:
        """Look at a buffer that has arrived.

        Returns
        -------
        view
            The caller's own: what is written to it changes nothing else. The writer gets the region
            back when nothing refers to the view any more: no array on it, no slice of it, nothing
            made from those. It stays valid when the reader is closed and when the peer has died.

        Raises
        ------
        ValueError
            No such place is in use.
        OSError
            The arena cannot be mapped.
        """
        if not 0 <= place.offset <= place.offset + place.length <= self._part.room_bytes:
            raise ValueError(f"{place} is out of bounds")
        words = self._part.words
        if place.ticket < _SLOTS or words[place.ticket % _SLOTS] != place.ticket:
            raise ValueError(f"{place} is no place in use")
        if place.ticket in self._held:
            raise ValueError(f"{place} has come before")
        anchor = self._part.anchor()
        pages, ticket = self._part.pages(place), place.ticket
        last = weakref.finalize(anchor, _give_back, self._held, pages, words, ticket, os.getpid())
        last.atexit = False
        self._held[place.ticket] = place
        view = memoryview(anchor).cast("B")
        return view[place.offset : place.offset + place.length]

    def find(self, buffer: memoryview) -> Region | None:
        """Tell where in the arena a buffer lies, so that it is sent back by reference.

        Parameters
        ----------
        buffer
            Contiguous. Whoever sends the place may drop it then.

        Returns
        -------
        place
            None if it does not lie in what was viewed here, or was written to since.
        """
        if not self._held:
            return None
        offset = _address_of(buffer) - self._part.address
        if not 0 <= offset < self._part.room_bytes:
            return None
        for whole in self._held.copy().values():  # a finalizer may change it now
            if whole.offset <= offset < whole.offset + whole.length:
                place = Region(offset, buffer.nbytes, whole.ticket)
                return None if self._part.pages(place).were_written() else place
        return None

    def map(self) -> None:
        """Take the address space now, and not when it is first needed."""
        self._part.map()

    def close(self) -> None:
        """Unmap the arena, as soon as no view needs it. Views stay valid."""
        self._held = {}
        self._part.close()


class _Region:
    """Pages that hold one buffer; `last` is behind them."""

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


class _Part:
    """The arena's part of the file: a page of words, then room for regions.

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
        were made from. ctypes keeps every type of array for ever, so all are of one length.

        The garbage collector must not see the object. It clears the weak references to all of a
        cycle before it calls the first ``__del__`` there, which may still read the memory, or even
        bring it back to life. Untracked, the object goes when its last referrer goes.
        """
        anchor = (ctypes.c_ubyte * self.room_bytes).from_buffer(self.memory, _PAGE)
        _untrack(anchor)
        return anchor

    def allocate_words(self) -> None:
        """Make the page of words exist, so that it can be touched when memory has run out."""
        os.posix_fallocate(self._descriptor, self._offset, _PAGE)

    def write(self, start: int, buffer: memoryview) -> None:
        """Write to the room by system calls.

        Raises
        ------
        OSError
            There is no memory for it. Some pages may have been made.
        """
        while buffer:
            count = os.pwrite(self._descriptor, buffer, self._offset + _PAGE + start)
            buffer = buffer[count:]
            start += count

    def advise(self, option: int, first: int, last: int) -> None:
        """Tell the system something about pages of the room."""
        self.memory.madvise(option, _PAGE + first * _PAGE, (last - first) * _PAGE)

    def map_privately(self, place: Region) -> Any:
        """Map a buffer, from the begin of its first page on, so that what is written is not shared.

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
        """Forget the mapping. It goes when no view needs it; closing it would fail until then."""
        self._descriptor = -1
        for name in ("memory", "words", "address"):
            self.__dict__.pop(name, None)


class _PrivatePart(_Part):
    """The same for the end that reads: the words are shared, what is written to the room is not."""

    @functools.cached_property
    def memory(self) -> mmap.mmap:
        if self._descriptor < 0:
            raise ValueError("the arena is closed")
        length = _PAGE + self.room_bytes
        access = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self._descriptor, length, _PRIVATE, access, offset=self._offset)

    @functools.cached_property
    def words(self) -> memoryview:
        assert self.memory  # or it is closed
        page = _mapped(self._descriptor, _PAGE, self._offset, mmap.MAP_SHARED)
        return memoryview(page).cast("B").cast("Q")

    def map(self) -> None:
        """Map it now."""
        super().map()
        assert len(self.words) == _SLOTS

    def pages(self, place: Region) -> _Pages:
        """Return the pages that a buffer lies in."""
        first = place.offset // _PAGE
        last = -(-(place.offset + place.length) // _PAGE)
        return _Pages(self.memory, self.address, first, last)


def _mapped(descriptor: int, length: int, offset: int, flags: int) -> Any:
    """Map a part of a file; return bytes, some more than there are, that hold the mapping.

    Python's own `mmap` keeps a descriptor for each mapping.

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
    """Pages of a private mapping: which of them were written to, and so are copies."""

    __slots__ = ("_address", "_first", "_last", "_memory")

    def __init__(self, memory: mmap.mmap, address: int, first: int, last: int) -> None:
        self._memory = memory
        self._address = address
        self._first = first
        self._last = last

    def were_written(self) -> bool:
        """Whether one was written to, or whether that cannot be known."""
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
        # Of the 8 bytes of an entry the last one has the flags, on a machine that begins with the
        # low ones.
        flags = entries[7 if sys.byteorder == "little" else 0 :: 8]
        return len(flags) != count or flags.translate(_IS_COPY).find(1) >= 0

    def restore(self) -> None:
        """Drop what was written.

        Raises
        ------
        OSError
            The process has locked its memory.
        """
        if self._last > self._first and self.were_written():
            length = (self._last - self._first) * _PAGE
            self._memory.madvise(mmap.MADV_DONTNEED, _PAGE + self._first * _PAGE, length)


_PRESENT, _SWAPPED, _OF_A_FILE = 0x80, 0x40, 0x20  # Documentation/admin-guide/mm/pagemap.rst
_IS_COPY = bytes(
    bool(flags & _SWAPPED or (flags & _PRESENT and not flags & _OF_A_FILE)) for flags in range(256)
)


def _free_slot(regions: list[_Region]) -> int:
    taken = {region.slot for region in regions}
    slot = 0
    while slot in taken:
        slot += 1
    return slot


def _give_back(
    held: dict[int, Region], pages: _Pages, words: memoryview, ticket: int, pid: int
) -> None:
    """Say that the reader needs a region no more. It runs in any thread, at any moment."""
    if os.getpid() != pid:  # a forked child has dropped its copy of the view; the parent has not
        return
    held.pop(ticket, None)
    if words[ticket % _SLOTS] == ticket:
        try:
            pages.restore()
        except OSError:
            return  # the region stays taken: the next one who looks would see what was written
        words[ticket % _SLOTS] = 0


class _Buffer(ctypes.Structure):
    """The beginning of C's ``Py_buffer``, and room for the rest."""

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
    """Return the address of the first byte, also of a read-only buffer, which ctypes refuses."""
    found = _Buffer()
    _get_buffer(buffer, found, 0)
    address: int = found.address or 0
    _release_buffer(found)
    return address
