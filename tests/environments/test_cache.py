"""The environments of a user: what counts as one, who uses it, and what is removed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from snakepit_kernel.environments.cache import UNUSED_SECONDS, EnvironmentCache, Resolution
from snakepit_kernel.environments.marker import MARKER

DAY = 86400.0


@pytest.fixture
def cache(cache_folder: Path) -> EnvironmentCache:
    return EnvironmentCache()


def begin(cache: EnvironmentCache, name: str) -> Path:
    """Make an environment by half: a folder with an interpreter."""
    folder = cache.folder(name)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def make(cache: EnvironmentCache, name: str, *, unused: float = 0.0) -> Path:
    """Make an environment without packages, and a request that was resolved to it."""
    folder = begin(cache, name)
    resolution = Resolution(name=name, requirements=("six",), packages=("six==1",))
    cache.keep_resolution(f"request-{name}", resolution)
    cache.complete(resolution)
    used = time.time() - unused
    os.utime(folder / MARKER, (used, used))
    return folder


def names(cache: EnvironmentCache) -> list[str]:
    return [environment.name for environment in cache.all()]


def test_what_is_half_made_is_no_environment(cache):
    folder = begin(cache, "half")
    assert cache.find("half") is None
    assert cache.use("half") is None

    (folder / MARKER).write_text('{"name": "ha')

    assert cache.find("half") is None
    assert cache.use("half") is None
    assert names(cache) == []


def test_an_environment_whose_interpreter_was_removed_is_none(cache):
    folder = make(cache, "a")
    assert names(cache) == ["a"]

    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/no/such/python")

    assert cache.use("a") is None


def test_a_sweep_removes_what_is_half_made_unless_it_is_being_made(cache):
    begin(cache, "left")
    begin(cache, "made")
    make(cache, "whole")
    lock = cache.lock("made", exclusive=True)

    cache.sweep()

    assert not cache.folder("left").exists()
    assert cache.folder("made").exists()
    assert names(cache) == ["whole"]
    lock.release()


def test_a_sweep_removes_what_nobody_has_used_for_a_long_time(cache):
    make(cache, "old", unused=UNUSED_SECONDS + DAY)
    make(cache, "young", unused=UNUSED_SECONDS - DAY)

    cache.sweep()

    assert names(cache) == ["young"]


def test_prune_removes_what_was_not_used_for_so_long_and_forgets_its_requests(cache):
    make(cache, "old", unused=31 * DAY)
    make(cache, "young", unused=29 * DAY)

    done = cache.prune(30 * DAY)

    assert [(each.environment.name, each.in_use) for each in done] == [("old", False)]
    assert names(cache) == ["young"]
    assert not cache.folder("old").exists()
    assert cache.resolution("request-old") is None
    assert cache.resolution("request-young").packages == ("six==1",)


def test_what_is_in_use_stays_until_its_last_user_has_released_it(cache):
    make(cache, "a", unused=99 * DAY)
    first, second = cache.use("a"), cache.use("a")
    first.release()

    assert [each.in_use for each in cache.prune()] == [True]
    assert names(cache) == ["a"]
    assert cache.find("a").used > time.time() - DAY  # a use counts from its beginning

    second.release()
    assert [each.in_use for each in cache.prune()] == [False]
    assert names(cache) == []


def test_a_dry_run_removes_nothing(cache):
    make(cache, "a")

    assert [each.environment.name for each in cache.prune(dry_run=True)] == ["a"]
    assert names(cache) == ["a"]


def test_a_damaged_record_of_a_request_is_as_none(cache, cache_folder):
    make(cache, "a")
    record = cache_folder / "requests" / "request-a.json"
    for text in ("", "[]", '{"name": 3}', json.dumps({"name": "a", "packages": ["six"]})):
        record.write_text(text)
        assert cache.resolution("request-a") is None


def test_the_folder_is_private(cache, cache_folder):
    make(cache, "a")

    assert cache_folder.stat().st_mode & 0o777 == 0o700
    cache_folder.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700 .* or set SNAKEPIT_CACHE_DIR to another"):
        EnvironmentCache()
