"""The files of earlier versions are read and written on: sessions, programs, runs, exports."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from snakepit_kernel import (
    ConstraintViolation,
    Pool,
    VariableLocked,
    VariableNotFound,
    context,
    import_session,
    open_session,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONTENTS: dict[str, Any] = json.loads((FIXTURES / "contents.json").read_text())


@pytest.fixture(scope="module")
def maker(fixture_program) -> ModuleType:
    """The program that wrote the files: it tells what is in them."""
    return fixture_program("make_database")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data directory as an earlier version has left it."""
    with zipfile.ZipFile(FIXTURES / "database.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / "sessions.sqlite-programs").chmod(0o700)  # zipfile gives others' rights to it
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Path:
    return folder / "sessions.sqlite"


def test_everything_in_a_store_of_an_earlier_version_is_read(maker, store):
    found = maker.contents(store)
    for name, session in CONTENTS.items():
        for part, content in session.items():
            if part == "objects" and sys.version_info[:2] != (3, 11):
                # Code is of one version of Python: these are what others can read.
                assert set(found[name][part]) <= set(content)
                found[name][part] = {**content, **found[name][part]}
            assert found[name][part] == content, f"{part} of {name}"


def test_a_store_of_an_earlier_version_is_written_on(store):
    session = open_session("experiment", store=store)
    revision = session.variables.history("float")[-1].revision
    session.variables["float"] = 1.25
    newest = max(session.variables.history("float"), key=lambda change: change.revision)
    assert (newest.value, newest.version) == (1.25, 5)
    assert newest.revision > revision
    with pytest.raises(ConstraintViolation):
        session.variables["float"] = -3.0
    with pytest.raises(VariableLocked, match="under test"):
        session.variables["boolean"] = True
    session.variables.unlock("boolean")
    session.variables["boolean"] = True
    session.variables["array"] = np.zeros((1, 3))
    session.variables.rollback("choice", 1)
    with pytest.raises(VariableNotFound):
        session.variables["gone"]
    added = session.variables.register("new", "list", [1])
    assert added.id > max(each.id for each in session.variables.list() if each.name != "new")
    session.programs["plain"] = [0]
    assert session.programs.info("plain").version == 3
    session.programs["big"] = b"\1" * 300_000
    session.metadata["note"] = "another"
    del session.programs["adapter"]

    again = open_session("experiment", store=store)
    assert again.variables["boolean"] is True
    assert again.variables["choice"] == "fast"
    assert again.variables["new"] == [1]
    assert again.programs["plain"] == [0]
    assert "adapter" not in again.programs
    assert again.metadata["note"] == "another"
    fork = again.fork("copy")
    assert fork.programs["big"] == b"\1" * 300_000
    small = open_session("small", store=store)
    assert small.ttl == CONTENTS["small"]["ttl"]
    small.delete()
    assert len(list(store.with_name(f"{store.name}-programs").iterdir())) == 2


def test_a_pool_works_on_a_store_of_an_earlier_version(store):
    with Pool(1, store=store) as pool:
        assert {session.id for session in pool.sessions()} == set(CONTENTS)
        assert pool.programs["global"] == {"model": [1.5, 2.5]}
        assert pool.programs.info("global").metadata == {"of": "all"}
        session = pool.session("experiment")
        assert session.submit(read_and_write).result() == ("exact", [1, 2, 3], 0.5)
        assert session.variables["any"] == {"from": "a newer worker"}


def read_and_write() -> tuple[Any, ...]:
    with context() as here:
        here.variables["any"] = {"from": "a newer worker"}
        model = here.programs["objects"]["model"]
        return here.variables["choice"], here.programs["of-a-worker"], model.weight


read_and_write.__module__ = "__main__"  # by value: this module is no module of the workers


def test_an_exported_session_of_an_earlier_version_is_imported(maker, tmp_path):
    session = open_session("imported", store=tmp_path / "new.sqlite")
    with pytest.raises(ValueError, match="trust"):
        import_session(session, FIXTURES / "session.json")
    then = json.loads((FIXTURES / "contents.json").read_text())["experiment"]
    content = json.loads((FIXTURES / "session.json").read_text())
    if maker.HAS_OTHER_REFERENCES:
        for each in (content["programs"], then["programs"], then["objects"]):
            del each["classes"]
    exported = tmp_path / "session.json"
    exported.write_text(json.dumps(content))
    count = import_session(session, exported, trust=True)
    found = json.loads(json.dumps(maker.of_session(session)))
    assert count == len(then["variables"]) + len(then["programs"]) + len(then["metadata"])
    assert found["metadata"] == then["metadata"]
    assert found["objects"] == then["objects"]
    assert facts_of(found["variables"]) == facts_of(then["variables"])


def facts_of(variables: dict[str, Any]) -> dict[str, Any]:
    """What an export keeps of variables: neither their past nor when and by whom they were made."""
    kept = ("type", "value", "constraints", "description", "metadata")
    return {
        name: {key: variable["Variable"][key] for key in kept}
        for name, variable in variables.items()
    }


def test_runs_of_an_earlier_version_are_listed(folder):
    environment = {**os.environ, "SNAKEPIT_DATA_DIR": str(folder)}
    command = [shutil.which("snakepit", path=os.path.dirname(sys.executable)), "status"]
    listed = subprocess.run(
        [*command, "--runs", "--json"], env=environment, capture_output=True, check=True, timeout=60
    )
    runs = {run["label"]: run for run in json.loads(listed.stdout)["ended"]}
    assert set(runs) == {"Python 3 (Snakepit)", "guarded-1.1"}
    assert runs["guarded-1.1"]["verified"] is True
    (process,) = runs["Python 3 (Snakepit)"]["processes"]
    assert (process["command"], process["signal"]) == ("sleep 600", "SIGTERM")


@pytest.mark.parametrize("origin", ["an earlier version", "this version"])
def test_tables_are_as_they_were(maker, folder, tmp_path, monkeypatch, origin):
    if origin == "this version":
        folder = tmp_path / "new"
        folder.mkdir(mode=0o700)
    monkeypatch.setenv("SNAKEPIT_DATA_DIR", str(folder))
    for store in maker.DATABASES:
        assert (folder / store).exists() is (origin == "an earlier version")
    open_session("s").variables.register("x", "integer", 1)
    with Pool(1) as pool:
        pool.run("0")
    before, now = (FIXTURES / "schema.txt").read_text(), maker.schema(folder)
    changes = difflib.unified_diff(
        before.splitlines(), now.splitlines(), "as they were", "as they are now", lineterm="", n=0
    )
    text = "\n".join(changes)
    renewing = "if users' files become like that, too: tests/fixtures/make_database.py --schema"
    assert not text, f"tables have changed; {renewing}\n{text}"
