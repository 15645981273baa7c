"""Workers find modules and files where the notebook does."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_kernel import Pool


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Write modules into folders; what was imported of them is forgotten with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def write_one(folder: str, name: str, code: str = "") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(code or f"def where(): return {folder!r}\n")
        names.append(name)
        importlib.invalidate_caches()
        return str(tmp_path / folder)

    yield write_one
    for name in names:
        sys.modules.pop(name, None)


def where(name: str) -> str:
    return importlib.import_module(name).where()


def found(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


where.__module__ = found.__module__ = "__main__"


def in_all(pool: Pool, function: Callable, *args: object) -> set:
    """What a function gives in each worker."""
    return {pool._apply(function, *args, worker=slot) for slot in pool.slots()}


def test_a_module_of_the_notebook_shadows_an_installed_one_in_workers_too(write, open_pool):
    sys.path.insert(0, write("mine", "snakepit_six"))
    sys.path.append(write("theirs", "snakepit_six"))
    pool = open_pool(2)

    assert in_all(pool, where, "snakepit_six") == {"mine"}
    sys.path.insert(0, write("later", "snakepit_seven"))
    sys.path.append(write("theirs", "snakepit_seven"))
    module = importlib.import_module("snakepit_seven")
    assert pool.submit(module.where).result() == "later"
    assert in_all(pool, where, "snakepit_seven") == {"later"}


def test_later_additions_and_removals_reach_workers_that_run(write, open_pool):
    pool = open_pool(2)
    pool.run_all("1")
    folder = write("late", "snakepit_late")
    assert in_all(pool, found, "snakepit_late") == {False}

    sys.path.insert(0, folder)
    module = importlib.import_module("snakepit_late")
    assert list(pool.map(lambda _: module.where(), range(6))) == ["late"] * 6
    pool.recycle(1)
    assert in_all(pool, where, "snakepit_late") == {"late"}
    sys.path.remove(folder)
    write("late", "snakepit_gone")
    assert in_all(pool, found, "snakepit_gone") == {False}
    assert in_all(pool, _has, folder) == {False}


def _has(folder: str) -> bool:
    return folder in sys.path


_has.__module__ = "__main__"


def test_what_code_of_a_worker_has_added_stays(write, open_pool):
    pool = open_pool(1)
    front, behind = write("front", "snakepit_a"), write("behind", "snakepit_b")
    pool.run(f"import sys; sys.path.insert(0, {front!r}); sys.path.append({behind!r})")

    sys.path.insert(0, write("new", "snakepit_c"))

    path = pool.run("sys.path").value
    assert path[:2] == [front, sys.path[0]]
    assert path[-1] == behind


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_workers_follow_the_working_directory(write, open_pool, tmp_path, profile):
    write("there", "snakepit_here")
    (tmp_path / "there" / "data.txt").write_text("data")
    pool = open_pool(1, profile=profile)
    assert pool.submit(os.getcwd).result() == str(tmp_path)

    os.chdir("there")
    sys.path.insert(0, "")

    assert pool.submit(lambda: Path("data.txt").read_text()).result() == "data"
    assert pool.submit(importlib.import_module("snakepit_here").where).result() == "there"
    assert pool.run("open('data.txt').read()").value == "data"


def test_a_session_that_has_gone_elsewhere_stays_there(write, open_pool, tmp_path):
    write("there", "snakepit_x")
    pool = open_pool(1)
    pool.session("s").run("import os; os.chdir('/')")

    os.chdir("there")

    assert pool.session("s").run("os.getcwd()").value == "/"
    assert pool.session("t").submit(os.getcwd).result() == str(tmp_path / "there")
    assert pool.submit(os.getcwd).result() == str(tmp_path / "there")


def test_workers_with_a_directory_of_their_own_keep_it(write, open_pool, tmp_path):
    write("there", "snakepit_x")
    pool = open_pool(1, cwd="/")

    os.chdir("there")
    sys.path.insert(0, "")

    assert pool.submit(os.getcwd).result() == "/"
    assert pool.submit(where, "snakepit_x").result() == "there"


def test_a_working_directory_that_was_removed_stops_no_work(write, open_pool, tmp_path):
    write("there", "snakepit_x")
    pool = open_pool(1)
    os.chdir("there")
    for file in Path().iterdir():
        file.unlink()
    (tmp_path / "there").rmdir()

    assert pool.submit(pow, 2, 3).result() == 8
    assert pool.run("1 + 1").value == 2


def test_preloaded_modules_are_found_in_the_notebooks_order(write, open_pool):
    sys.path.insert(0, write("first", "snakepit_pre"))
    sys.path.append(write("last", "snakepit_pre"))

    pool = open_pool(1, preload=["snakepit_pre"])

    assert pool.submit(where, "snakepit_pre").result() == "first"


def test_what_a_worker_does_not_find_is_told_with_what_would_help(open_pool):
    ghost = types.ModuleType("snakepit_ghost")
    exec("def g(): return 1", vars(ghost))
    sys.modules["snakepit_ghost"] = ghost
    pool = open_pool(1)
    try:
        error = pool.submit(ghost.g).exception()
    finally:
        del sys.modules["snakepit_ghost"]

    assert type(error) is ModuleNotFoundError
    assert "no 'snakepit_ghost' there" in error.__notes__[0]
    assert "register_pickle_by_value" in error.__notes__[0]


def test_an_edited_module_is_told_of_and_reload_or_autoreload_brings_it(write, open_pool):
    sys.path.insert(0, write("edited", "snakepit_edited"))
    module = importlib.import_module("snakepit_edited")
    pool, following = open_pool(1), open_pool(1, name="following", autoreload=True)
    for each in (pool, following):
        assert each.submit(module.where).result() == "edited"
        assert each.run("import snakepit_edited; snakepit_edited.where()").value == "edited"

    write("edited", "snakepit_edited", "def where(): return 'changed'\ndef new(): return 2\n")
    importlib.reload(module)

    error = pool.submit(module.new).exception()
    assert "pool.reload() (%snakepit reload)" in error.__notes__[0]
    assert following.submit(module.new).result() == 2
    assert following.run("snakepit_edited.where()").value == "changed"
    write("edited", "snakepit_edited", "def where(): return 'again'\ndef newer(): return 3333\n")
    assert following.run("snakepit_edited.where()").value == "again"
    pool.reload()
    assert pool.submit(where, "snakepit_edited").result() == "again"


def test_autoreload_is_a_yes_or_no(open_pool):
    with pytest.raises(TypeError, match="autoreload must be True or False, not 2"):
        open_pool(1, autoreload=2)
