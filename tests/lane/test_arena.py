"""The arena: what is placed is seen as it was, for as long as anything refers to it."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.lane.shared_memory import ArenaReader, ArenaWriter, Region

PAGE = mmap.PAGESIZE
LIMIT = 64 * PAGE
ROOM = LIMIT - PAGE  # less the page of words


class Arena:
    """Both ends of an arena, in one process: the second part of a file, as in a lane."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("test-arena")
        os.ftruncate(self.descriptor, PAGE + LIMIT)
        self.writer = ArenaWriter(self.descriptor, PAGE, LIMIT)
        self.reader = ArenaReader(self.descriptor, PAGE, LIMIT)

    def put(self, content: bytes) -> Region:
        place = self.writer.place(memoryview(content))
        assert place is not None
        return place

    def send(self, content: bytes) -> memoryview:
        return self.reader.view(self.put(content))

    @property
    def file_bytes(self) -> int:
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        os.close(self.descriptor)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena()
    yield arena
    arena.close()


def mappings() -> str:
    return Path("/proc/self/maps").read_text()


def pages(count: int, fill: bytes = b"\xa5") -> bytes:
    return fill * (count * PAGE)


def unpickled(value: Any, view: memoryview) -> Any:
    """Restore a value from its pickle, with its one buffer out of band in the view."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert buffers[0].raw().nbytes == view.nbytes
    return pickle.loads(body, buffers=[view])


class Peer(subprocess.Popen[str]):
    """A process that runs a program with an arena `fd`, and answers in lines."""

    def __init__(self, arena: Arena, program: str) -> None:
        begin = (
            "import os, sys\n"
            "from snakepit_kernel.lane.shared_memory import *\n"
            f"fd, offset, limit = {arena.descriptor}, {PAGE}, {LIMIT}\n"
            "answer = lambda *words: print(*words, flush=True)\n"
        )
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", begin + program]
        super().__init__(command, stdin=pipe, stdout=pipe, text=True, pass_fds=[arena.descriptor])

    def ask(self, *words: object) -> None:
        assert self.stdin is not None
        print(*words, file=self.stdin, flush=True)

    def heard(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1, ROOM])
def test_a_buffer_of_any_size_arrives_as_it_was(arena, size):
    content = os.urandom(size)

    assert bytes(arena.send(content)) == content


def test_a_buffer_arrives_as_it_was_also_in_memory_that_was_used_before(arena):
    del_me = arena.send(pages(3, b"x"))
    del del_me
    content = os.urandom(5 * PAGE - 7)  # 3 pages are mapped already, 2 are new

    assert bytes(arena.send(content)) == content


def test_an_array_of_any_type_is_placed_as_its_bytes(arena):
    array = np.arange(3000, dtype="f8").reshape(30, 100)

    place = arena.writer.place(memoryview(array))

    assert bytes(arena.reader.view(place)) == array.tobytes()


def test_a_buffer_with_gaps_is_refused_and_takes_no_room(arena):
    with pytest.raises(TypeError, match="contiguous"):
        arena.writer.place(memoryview(b"abcdef")[::2])

    assert arena.writer.used_bytes == 0


def test_nothing_is_mapped_or_taken_before_the_first_buffer(arena):
    assert arena.file_bytes == 0
    assert arena.writer.held_bytes == 0
    assert arena.writer.used_bytes == 0
    assert "memfd:test-arena" not in mappings()


def test_a_place_travels_in_a_message(arena):
    place = arena.put(b"content")

    message = msgspec.msgpack.encode([place])

    assert msgspec.msgpack.decode(message, type=list[Region]) == [place]


def test_what_is_written_to_a_view_is_seen_by_nobody_else_and_goes_with_it(arena):
    view = arena.send(pages(3))
    array = np.frombuffer(view, dtype="u1")
    array[PAGE + 5] = 7

    assert view[PAGE + 5] == 7
    assert os.pread(arena.descriptor, 3 * PAGE, 2 * PAGE) == pages(3)
    del view, array
    again = arena.send(pages(3, b"n"))
    assert arena.writer.held_bytes == 3 * PAGE, "the same region"
    assert bytes(again) == pages(3, b"n")


def test_a_view_that_was_written_to_is_not_sent_back_by_reference(arena):
    view = arena.send(pages(4))

    assert arena.reader.find(view) is not None
    view[2 * PAGE] = 0
    assert arena.reader.find(view) is None
    assert arena.reader.find(view[: 2 * PAGE]) is not None, "these pages are as they were sent"


def test_views_of_one_region_in_both_processes_are_each_their_own(arena):
    view = arena.send(pages(2))
    place = arena.reader.find(view[10:-10])
    ours = [arena.writer.view(place) for _ in range(2)]
    view[20], ours[0][10], ours[1][10] = 1, 2, 3

    assert [view[20], ours[0][10], ours[1][10]] == [1, 2, 3]
    assert bytes(ours[0][11:]) == bytes(view[21:-10])


def test_pages_are_taken_for_written_where_the_system_does_not_tell(arena, monkeypatch):
    real = os.open

    def refuse(path, *args, **kwargs):
        if path == "/proc/self/pagemap":
            raise PermissionError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    view = arena.send(pages(2))
    assert arena.reader.find(view) is None
    view[0] = 1
    del view
    assert bytes(arena.send(pages(2, b"n"))) == pages(2, b"n")


REFERRERS: dict[str, Callable[[memoryview], Any]] = {
    "view": lambda view: view,
    "slice of a slice": lambda view: view[10:][:100],
    "view of a view": lambda view: memoryview(memoryview(view).cast("d")),
    "array": lambda view: np.frombuffer(view, dtype="f8"),
    "part of an array": lambda view: np.frombuffer(view, dtype="f8").reshape(4, -1)[1:3].T,
    "view of an array": lambda view: memoryview(np.frombuffer(view, dtype="f8")),
    "pickled array": lambda view: unpickled(np.zeros(view.nbytes // 8), view),
    "frame": lambda view: unpickled(pd.DataFrame(np.zeros((view.nbytes // 32, 4))), view),
    "column": lambda view: unpickled(pd.DataFrame(np.zeros((view.nbytes // 32, 4))), view)[2],
    "pickle buffer": pickle.PickleBuffer,
}


@pytest.mark.parametrize("refer", REFERRERS.values(), ids=REFERRERS)
def test_a_region_is_given_back_exactly_when_nothing_refers_to_it(arena, refer):
    view = arena.send(pages(2))
    referrer = refer(view)

    del view
    assert arena.writer.used_bytes == 2 * PAGE
    del referrer
    assert arena.writer.used_bytes == 0


def test_a_copy_does_not_keep_a_region(arena):
    copy = bytes(arena.send(pages(2)))

    assert len(copy) == 2 * PAGE
    assert arena.writer.used_bytes == 0


def test_a_cycle_keeps_a_region_until_it_is_collected(arena):
    cycle: list[Any] = [np.frombuffer(arena.send(pages(2)), dtype="u1")]
    cycle.append(cycle)

    del cycle
    used_before = arena.writer.used_bytes
    gc.collect()

    assert (used_before, arena.writer.used_bytes) == (2 * PAGE, 0)


def test_what_is_brought_back_to_life_by_its_finalizer_keeps_its_region(arena):
    saved: list[Any] = []

    class Phoenix:
        def __init__(self, view: memoryview) -> None:
            self.view = view
            self.me = self

        def __del__(self) -> None:
            saved.append((self.view, arena.writer.used_bytes))

    Phoenix(arena.send(pages(2)))
    gc.collect()

    view, used_in_finalizer = saved.pop()
    assert used_in_finalizer == arena.writer.used_bytes == 2 * PAGE
    del view
    gc.collect()
    assert arena.writer.used_bytes == 0


def test_a_view_may_be_dropped_in_another_thread(arena):
    views = [arena.send(pages(1))]

    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()

    assert arena.writer.used_bytes == 0


def test_views_that_other_threads_drop_while_buffers_are_placed_are_neither_lost_nor_torn(arena):
    kept: list[tuple[memoryview, int]] = []
    wrong: list[int] = []

    def drop() -> None:
        while (item := kept.pop() if kept else None) != (None, -1):
            if item is not None and bytes(item[0]) != bytes([item[1]]) * len(item[0]):
                wrong.append(item[1])

    threads = [threading.Thread(target=drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        place = arena.writer.place(memoryview(bytes([number % 251]) * (1 + number % 9000)))
        if place is not None:
            kept.append((arena.reader.view(place), number % 251))
    kept[:0] = [(None, -1)] * len(threads)
    for thread in threads:
        thread.join()

    assert wrong == []
    assert arena.writer.used_bytes == 0


def test_a_place_is_viewed_once(arena):
    place = arena.put(pages(1))
    view = arena.reader.view(place)

    with pytest.raises(ValueError, match="has come before"):
        arena.reader.view(place)
    assert bytes(view) == pages(1)


def test_the_lowest_pages_are_used_again_and_neighbours_merge(arena):
    views = [arena.send(pages(2)) for _ in range(4)]

    del views[1:3]
    place = arena.put(pages(4))

    assert place.offset == 2 * PAGE
    assert arena.writer.held_bytes == 8 * PAGE


def test_a_buffer_that_does_not_fit_is_not_placed_and_later_it_is(arena):
    view = arena.send(pages(40))
    too_much = memoryview(pages(40))

    assert arena.writer.place(too_much) is None
    del view
    assert arena.writer.place(too_much) is not None


def test_more_buffers_than_the_arena_can_count_are_not_placed(arena):
    os.ftruncate(arena.descriptor, PAGE + 1024 * PAGE)
    writer = ArenaWriter(arena.descriptor, PAGE, 1024 * PAGE)

    places = [writer.place(memoryview(b"x")) for _ in range(PAGE // 8 + 1)]

    assert None not in places[:-1]
    assert places[-1] is None
    writer.reclaim(places[100])
    assert writer.place(memoryview(b"x")).offset == places[100].offset


def test_a_place_that_is_withdrawn_is_free(arena):
    place = arena.put(pages(3))

    arena.writer.reclaim(place)

    assert arena.writer.used_bytes == 0


@contextlib.contextmanager
def memory_that_ends_at(size: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond a size, as it does when memory has run out.

    For a moment only: the report of the tests may be written to a file that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_buffer_for_which_there_is_no_memory_is_not_placed_and_takes_none(arena):
    view = arena.send(pages(2, b"v"))

    with memory_that_ends_at(10 * PAGE):
        refused = arena.writer.place(memoryview(pages(20)))

    assert refused is None
    assert arena.writer.held_bytes == arena.writer.used_bytes == 2 * PAGE
    assert arena.file_bytes == 3 * PAGE
    assert bytes(view) == pages(2, b"v")
    assert arena.writer.place(memoryview(pages(3))) is not None


def test_trim_gives_free_memory_back_and_keeps_what_is_in_use(arena):
    views = [arena.send(pages(5, bytes([65 + number]))) for number in range(5)]
    del views[3], views[1]  # B and D are free; A, C and E are in use
    del views[2]

    arena.writer.trim()

    assert arena.writer.held_bytes == 10 * PAGE
    assert arena.file_bytes == 11 * PAGE
    assert [bytes(view) for view in views] == [pages(5, b"A"), pages(5, b"C")]


def test_an_idle_arena_can_be_emptied_and_used_again(arena):
    arena.send(pages(20))

    arena.writer.trim()

    assert arena.writer.held_bytes == 0
    assert arena.file_bytes == PAGE
    assert bytes(arena.send(pages(20, b"n"))) == pages(20, b"n")
    assert arena.file_bytes == 21 * PAGE


def test_a_buffer_that_lies_in_the_arena_is_sent_back_by_reference(arena):
    view = arena.send(pages(1) + b"part" + pages(1))

    place = arena.reader.find(view[PAGE : PAGE + 4])
    del view

    assert bytes(arena.writer.view(place)) == b"part"


def test_an_array_on_a_view_is_found(arena):
    array = np.frombuffer(arena.send(pages(1)), dtype="f8")
    part = pickle.PickleBuffer(array[10:20]).raw()

    place = arena.reader.find(part)

    assert (place.offset, place.length) == (80, 80)


def test_a_buffer_that_lies_elsewhere_is_not_found(arena):
    elsewhere = memoryview(pages(1))

    assert arena.reader.find(elsewhere) is None  # nothing is mapped
    view = arena.send(pages(1))
    assert arena.reader.find(elsewhere) is None
    assert arena.reader.find(view) is not None


def test_a_referred_region_is_kept_by_the_writers_views_after_the_reader_dropped_it(arena):
    view = arena.send(pages(1, b"r"))
    place = arena.reader.find(view)
    del view

    again = arena.writer.view(place)
    part = np.frombuffer(arena.writer.view(place), dtype="u1")[5:]
    del again
    others = [arena.send(pages(1, b"o")) for _ in range(5)]
    arena.writer.trim()

    assert part.tobytes() == pages(1, b"r")[5:]
    part[0] = 0
    del others, part
    assert arena.writer.used_bytes == 0


def test_a_referred_region_is_in_use_until_both_have_dropped_it(arena):
    view = arena.send(pages(1))
    ours = arena.writer.view(arena.reader.find(view))

    del ours
    assert arena.writer.used_bytes == PAGE
    del view
    assert arena.writer.used_bytes == 0


LIES: dict[str, Callable[[Region], Region]] = {
    "negative offset": lambda p: Region(-1, p.length, p.ticket),
    "negative length": lambda p: Region(p.offset, -1, p.ticket),
    "too long": lambda p: Region(p.offset, ROOM + 1, p.ticket),
    "far away": lambda p: Region(1 << 62, p.length, p.ticket),
    "another ticket": lambda p: Region(p.offset, p.length, p.ticket + 1),
    "an old ticket": lambda p: Region(p.offset, p.length, p.ticket - PAGE // 8),
    "no ticket": lambda p: Region(p.offset, p.length, 0),
    "negative ticket": lambda p: Region(p.offset, p.length, -p.ticket),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_place_that_is_none_is_a_value_error_at_both_ends(arena, lie):
    place = arena.put(pages(1))

    with pytest.raises(ValueError, match="Region"):
        arena.reader.view(lie(place))
    with pytest.raises(ValueError, match="Region"):
        arena.writer.view(lie(place))


def test_a_reference_to_more_than_a_region_is_a_value_error(arena):
    place = arena.put(pages(1))
    arena.put(pages(1))

    with pytest.raises(ValueError, match="Region"):
        arena.writer.view(Region(place.offset, place.length + 1, place.ticket))


def test_a_place_that_was_given_back_is_a_value_error(arena):
    place = arena.put(pages(1))
    arena.reader.view(place)

    with pytest.raises(ValueError, match="no place in use"):
        arena.reader.view(place)


def test_a_table_of_garbage_makes_the_arena_full_and_nothing_worse(arena):
    place = arena.put(pages(1))
    os.pwrite(arena.descriptor, b"\xff" * PAGE, PAGE)

    assert arena.writer.used_bytes == PAGE
    assert arena.writer.place(memoryview(pages(1))) is not None
    arena.writer.trim()
    with pytest.raises(ValueError, match="no place in use"):
        arena.reader.view(place)


def test_a_view_stays_valid_when_the_arena_is_closed(arena):
    view = arena.send(pages(2, b"v"))
    ours = arena.writer.view(arena.reader.find(view))

    arena.writer.close()
    arena.reader.close()

    assert bytes(view) == bytes(ours) == pages(2, b"v")


def test_a_closed_arena_places_and_views_nothing(arena):
    place = arena.put(pages(2))
    arena.writer.close()
    arena.reader.close()

    assert arena.writer.place(memoryview(b"x")) is None
    assert arena.writer.used_bytes == arena.writer.held_bytes == 0
    assert arena.reader.find(memoryview(b"x")) is None
    with pytest.raises(ValueError, match="closed"):
        arena.reader.view(place)


def test_a_closed_arena_is_unmapped_when_its_last_view_is_dropped(arena):
    view = arena.send(pages(2))
    arena.writer.close()
    arena.reader.close()

    assert "test-arena" in mappings()
    del view
    assert "test-arena" not in mappings()


READER = """
reader = ArenaReader(fd, offset, limit)
views = {}
for line in sys.stdin:
    verb, *numbers = line.split()
    place = Region(*map(int, numbers))
    if verb == "view":
        views[place.ticket] = reader.view(place)
        answer(bytes(views[place.ticket][:3]).decode())
    if verb == "drop":
        del views[place.ticket]
        answer("dropped")
    if verb == "fork":  # the child drops all its views, and ends
        if (pid := os.fork()) == 0:
            views.clear()
            os._exit(0)
        os.waitpid(pid, 0)
        answer("forked")
"""


def test_a_reader_in_another_process_sees_buffers_and_gives_them_back(arena):
    with Peer(arena, READER) as peer:
        place = arena.put(b"abc" + pages(3))
        peer.ask("view", *msgspec.structs.astuple(place))
        assert peer.heard() == "abc"
        assert arena.writer.used_bytes == 4 * PAGE

        peer.ask("drop", *msgspec.structs.astuple(place))
        assert peer.heard() == "dropped"
        assert arena.writer.used_bytes == 0
        assert arena.put(b"def").offset == place.offset


def test_the_child_of_a_forked_reader_gives_nothing_back(arena):
    with Peer(arena, READER) as peer:
        place = msgspec.structs.astuple(arena.put(b"abc" + pages(3)))
        for verb, answer in [("view", "abc"), ("fork", "forked")]:
            peer.ask(verb, *place)
            assert peer.heard() == answer

        assert arena.writer.used_bytes == 4 * PAGE
        peer.ask("drop", *place)
        assert peer.heard() == "dropped"
        assert arena.writer.used_bytes == 0


def test_a_reader_that_is_killed_leaves_the_writers_views_as_they_are(arena):
    with Peer(arena, READER) as peer:
        place = arena.put(b"abc" + pages(3))
        peer.ask("view", *msgspec.structs.astuple(place))
        assert peer.heard() == "abc"
        view = arena.writer.view(place)
        peer.kill()

    assert bytes(view) == b"abc" + pages(3)


def test_a_writer_that_is_killed_leaves_the_readers_views_as_they_are(arena):
    program = """
place = ArenaWriter(fd, offset, limit).place(memoryview(b"w" * 50000))
answer(place.offset, place.length, place.ticket)
sys.stdin.readline()
"""
    with Peer(arena, program) as peer:
        view = arena.reader.view(Region(*map(int, peer.heard().split())))
        peer.kill()

    assert bytes(view) == b"w" * 50000


class Model:
    """What is placed and who refers to it, beside an arena that must do the same."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.readers: list[tuple[bytes, memoryview]] = []
        self.writers: list[tuple[bytes, memoryview]] = []

    def place(self, size: int) -> None:
        content = os.urandom(size)
        place = self.arena.writer.place(memoryview(content))
        if place is not None:
            self.readers.append((content, self.arena.reader.view(place)))

    def drop(self, index: int) -> None:
        held = self.readers if index % 2 else self.writers
        if held:
            del held[index % len(held)]

    def echo(self, index: int) -> None:
        """Send a buffer back by reference; the reader drops it before the writer looks."""
        if self.readers:
            content, view = self.readers.pop(index % len(self.readers))
            start = index % (len(view) + 1)
            place = self.arena.reader.find(view[start:])
            del view
            if place is not None:
                self.writers.append((content[start:], self.arena.writer.view(place)))

    def trim(self, _: int) -> None:
        self.arena.writer.trim()

    def check(self) -> None:
        for content, view in self.readers + self.writers:
            assert bytes(view) == content
        assert self.arena.writer.held_bytes + PAGE >= self.arena.file_bytes
        if not self.readers and not self.writers:
            assert self.arena.writer.used_bytes == 0


steps = st.one_of(
    st.tuples(st.just("place"), st.integers(0, 20 * PAGE)),
    st.tuples(st.sampled_from(["drop", "echo", "trim"]), st.integers(0, 1 << 20)),
)


@given(st.lists(steps, max_size=60))
def test_whatever_is_placed_and_dropped_no_two_buffers_overlap(sequence):
    arena = Arena()
    model = Model(arena)
    try:
        for verb, number in sequence:
            getattr(model, verb)(number)
            model.check()
    finally:
        arena.close()
