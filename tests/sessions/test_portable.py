"""Sessions as files."""

from __future__ import annotations

import base64
import datetime
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from snakepit_kernel.errors import BatchRejected
from snakepit_kernel.sessions.exports import export_session, import_session
from snakepit_kernel.sessions.state import open_session

PLAIN = {
    "string": ("string", "ä\n\"'"),
    "integer": ("integer", 2**70),
    "float": ("float", 0.1),
    "nan": ("float", math.nan),
    "inf": ("float", -math.inf),
    "boolean": ("boolean", True),
    "choice": {"type": "choice", "value": "b", "choices": ["a", "b"]},
    "list": ("list", [1, [None, b"\0"], {"a": 0.5}]),
    "dict": ("dict", {"a": [1], "": {}}),
    "bytes": ("bytes", bytes(range(256))),
    "array": ("array", np.arange(6, dtype=">i2").reshape(2, 3)),
    "point": ("array", np.array(1 + 2j)),
    "empty": ("array", np.zeros((0, 3), "f4")),
    "embedding": {"type": "embedding", "value": [0.5, 1.0], "shape": 2, "max": math.inf},
    "any": ("any", None),
}
PICKLED = {
    "tuple": ("any", (1, 2)),
    "tagged": ("dict", {"$": "pickle", "base64": ""}),
    "keys": ("dict", {1: 2}),
    "date": ("any", datetime.date(2026, 1, 1)),
    "text": ("array", np.array(["a"])),
    "surrogate": ("string", "\ud800"),
    "surrogate_key": ("dict", {"\ud800": 1}),
    "huge": ("integer", 10**6000),
    "deep": ("any", json.loads("[" * 60 + "]" * 60)),
}


class Armed:
    """A pickle that leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "session.json"


@pytest.fixture
def target(store):
    return open_session("target", store=store)


def rewrite(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_session_of_plain_values_is_read_back_equal_without_trust(session, target, file):
    session.variables.register_many(PLAIN)
    session.variables.describe("string", "words", {"k": [1]})
    session.programs.put("p", [1, 2], metadata={"kind": "list"})
    session.metadata["author"] = "me"

    assert export_session(session, file) == import_session(target, file) == len(PLAIN) + 2

    for old in session.variables.list():
        new = target.variables.info(old.name)
        assert (new.type, new.constraints) == (old.type, old.constraints)
        assert (new.description, new.metadata) == (old.description, old.metadata)
        if isinstance(old.value, np.ndarray):
            np.testing.assert_array_equal(new.value, old.value)
            assert new.value.dtype.kind == old.value.dtype.kind
        else:
            assert type(new.value) is type(old.value)
            assert repr(new.value) == repr(old.value)
    assert target.programs["p"] == [1, 2]
    assert target.programs.info("p").metadata == {"kind": "list"}
    assert dict(target.metadata) == {"author": "me"}


def test_the_file_can_be_read_by_people(session, file):
    session.variables.register("temperature", "float", 0.7, max=2)
    export_session(session, file)
    content = json.loads(file.read_text())
    assert (content["format"], content["version"], content["session"]) == (
        "snakepit-session",
        1,
        "s",
    )
    (variable,) = content["variables"]
    assert (variable["name"], variable["value"]) == ("temperature", 0.7)
    assert variable["constraints"] == {"max": 2}


@pytest.mark.parametrize("name", PICKLED)
def test_what_json_does_not_know_needs_trust(session, target, file, name):
    session.variables.register_many({name: PICKLED[name]})
    export_session(session, file)
    with pytest.raises(ValueError, match=f"{name} can only be read as a pickle"):
        import_session(target, file)
    assert list(target.variables) == []
    import_session(target, file, trust=True)
    found, value = target.variables[name], session.variables[name]
    assert type(found) is type(value)
    assert np.array_equal(found, value) if name == "text" else found == value


@pytest.mark.parametrize("part", ["name", "version"])
def test_what_a_refused_file_says_does_nothing_to_the_terminal(session, target, file, part):
    session.variables.register("tags", "any", {1, 2})
    export_session(session, file)
    content = json.loads(file.read_text())
    if part == "name":
        content["variables"][0]["name"] = "\x1b[2J\u202e"
    else:
        content["version"] = "\x1b[2J\u202e"
    file.write_text(json.dumps(content))

    with pytest.raises(ValueError, match=r"\\x1b\[2J\\u202e") as caught:
        import_session(target, file)

    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "place",
    [
        *("value", "nested", "program", "metadata", "note", "constraint", "description", "name"),
        *("variables by name", "programs as a list", "an unknown part", "deep"),
    ],
)
def test_a_pickle_that_was_hidden_by_hand_is_never_run(session, target, file, tmp_path, place):
    session.variables.register("v", "any", [1])
    session.programs["p"] = 1
    session.metadata["m"] = 1
    export_session(session, file)
    armed = {
        "$": "pickle",
        "base64": base64.b64encode(pickle.dumps(Armed(tmp_path / "trace"))).decode(),
    }

    def hide(content) -> None:
        match place:
            case "value":
                content["variables"][0]["value"] = armed
            case "nested":
                content["variables"][0]["value"] = [{"$": "float", "text": "1", "x": [armed]}]
            case "program":
                content["programs"]["p"]["value"] = {"a": armed}
            case "metadata":
                content["variables"][0]["metadata"] = {"a": armed}
            case "note":
                content["metadata"]["m"] = [[armed]]
            case "constraint":
                content["variables"][0]["constraints"] = {"value": armed}
            case "description":
                content["variables"][0]["description"] = [armed]
            case "name":
                content["variables"][0]["name"] = armed
            case "variables by name":
                content["variables"] = {"v": {**content["variables"][0], "value": armed}}
            case "programs as a list":
                content["programs"] = [armed, {"name": "p", "value": armed, "metadata": {}}]
            case "an unknown part":
                content["more"] = [armed]
            case "deep":
                value = armed
                for _ in range(60):
                    value = [value]
                content["variables"][0]["value"] = value

    rewrite(file, hide)
    with pytest.raises(ValueError, match="pickle"):
        import_session(target, file)
    assert not (tmp_path / "trace").exists()
    assert list(target.variables) == []


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"$": ["pickle"], "base64": "gASVCg=="}, id="a list as tag"),
        pytest.param({"$": "PICKLE", "base64": "gASVCg=="}, id="a tag in capitals"),
        pytest.param({"$": "array", "dtype": "O", "shape": [1], "base64": "AAAA"}, id="objects"),
        pytest.param({"$": "array", "dtype": "i4,O", "shape": [1], "base64": ""}, id="structured"),
        pytest.param({"$": "array", "dtype": ["i4"], "shape": [1], "base64": ""}, id="list dtype"),
    ],
)
def test_a_value_of_a_form_that_nobody_writes_is_refused_and_nothing_is_unpickled(
    session, target, file, monkeypatch, value
):
    session.variables.register("v", "any", 1)
    export_session(session, file)
    rewrite(file, lambda content: content["variables"][0].update(value=value))
    monkeypatch.setattr(pickle, "loads", None)

    with pytest.raises(ValueError, match="is damaged"):
        import_session(target, file)
    assert list(target.variables) == []


def test_a_link_in_the_place_of_the_file_is_replaced_and_what_it_names_is_not_touched(
    session, file, tmp_path
):
    other = tmp_path / "other"
    other.write_text("mine")
    file.symlink_to(other)

    export_session(session, file)

    assert other.read_text() == "mine"
    assert not file.is_symlink()


DAMAGES = {
    "no json": lambda text: text[: len(text) // 2],
    "no object": lambda text: "[]",
    "another format": lambda text: text.replace("snakepit-session", "other"),
    "no variables": lambda text: text.replace('"variables"', '"variable"'),
    "no value": lambda text: text.replace('"value"', '"val"'),
    "wrong base64": lambda text: text.replace("AAEC", "A*EC"),
    "an unknown kind": lambda text: text.replace('"$": "bytes"', '"$": "bits"'),
    "an array of objects": lambda text: text.replace("<i8", "|O"),
    "an array of another shape": lambda text: text.replace('"shape": [\n', '"shape": [\n7,\n'),
    "too deep": lambda text: "[" * 100_000,
    "variables that are none": lambda text: json.dumps({**json.loads(text), "variables": [1]}),
    "no text": lambda text: "\ud800",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_changes_nothing(session, target, file, damage):
    session.variables.register("bytes", "bytes", bytes([0, 1, 2, 3]))
    session.variables.register("array", "array", np.arange(3))
    session.metadata["m"] = 1
    export_session(session, file)
    text = DAMAGES[damage](file.read_text())
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=str(file)):
        import_session(target, file)
    assert (list(target.variables), dict(target.metadata)) == ([], {})


def test_a_trusted_pickle_that_is_damaged_is_refused(session, target, file):
    session.variables.register("v", "any", (1, 2))
    export_session(session, file)
    rewrite(file, lambda content: content["variables"][0]["value"].update(base64="gARL"))
    with pytest.raises(ValueError, match="is damaged"):
        import_session(target, file, trust=True)


def test_a_file_of_a_newer_version_is_refused(session, target, file):
    export_session(session, file)
    rewrite(file, lambda content: content.update(version=2))
    with pytest.raises(ValueError, match="has version 2 of the format"):
        import_session(target, file)


def test_variables_that_are_there_get_the_values_of_the_file(session, target, file):
    session.variables.register("a", "integer", 5, max=9)
    session.variables.register("new", "integer", 6)
    export_session(session, file)
    target.variables.register("a", "integer", 1, max=9)
    target.variables.register("other", "integer", 1)
    import_session(target, file)
    assert dict(target.variables) == {"a": 5, "other": 1, "new": 6}
    assert target.variables.info("a").version == 2


@pytest.mark.parametrize("obstacle", ["another type", "a lock", "a value by hand", "a limit"])
def test_all_variables_are_read_or_none(session, store, target, file, obstacle):
    session.variables.register("a_new", "integer", 1)
    session.variables.register("there", "integer", 5, max=9)
    session.variables.register("there_too", "bytes", bytes(1000))
    export_session(session, file)
    target.variables.register(
        "there", "float" if obstacle == "another type" else "integer", 1, max=9
    )
    target.variables.register("there_too", "bytes", b"")
    if obstacle == "a lock":
        target.variables.lock("there_too", "tuning")
    elif obstacle == "a value by hand":
        rewrite(file, lambda content: content["variables"][1].update(value=10))
    elif obstacle == "a limit":
        target = open_session("target", store=store, max_variable_bytes=500)
    with pytest.raises(BatchRejected):
        import_session(target, file)
    assert dict(target.variables) == {"there": 1, "there_too": b""}
    assert [v.version for v in target.variables.list()] == [1, 1]


def test_a_file_that_cannot_be_written_leaves_what_was_there(session, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        export_session(session, tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        export_session(session, tmp_path / "nowhere" / "file")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_some_variables_travel_as_plain_data(tmp_path):
    one = open_session("one", store=tmp_path / "s.sqlite")
    one.variables.register("temp_low", "float", 0.25, min=0.0, description="how cold")
    one.variables.register("temp_map", "array", np.arange(4.0))
    one.variables.register("name", "string", "Max")
    other = open_session("other", store=tmp_path / "s.sqlite")
    other.variables.register("temp_low", "float", 0.5, min=0.0)

    exported = json.loads(json.dumps(one.variables.export("temp_*")))
    names = other.variables.import_(exported)

    assert names == ["temp_low", "temp_map"]
    assert other.variables["temp_low"] == 0.25
    np.testing.assert_array_equal(other.variables["temp_map"], np.arange(4.0))
    assert "name" not in other.variables


@pytest.mark.parametrize(
    ("exported", "said"),
    [
        ({}, "this is no exported variables"),
        ({"format": "snakepit-variables", "version": 2, "variables": []}, "version 2"),
        ({"format": "snakepit-variables", "version": 1, "variables": [{"name": "x"}]}, "damaged"),
    ],
)
def test_what_is_no_export_of_variables_is_refused(tmp_path, exported, said):
    session = open_session("one", store=tmp_path / "s.sqlite")

    with pytest.raises(ValueError, match=said):
        session.variables.import_(exported)


def test_exported_variables_that_are_pickles_have_to_be_trusted(tmp_path):
    session = open_session("one", store=tmp_path / "s.sqlite")
    session.variables.register("tags", "any", {1, 2})
    exported = session.variables.export()
    session.variables["tags"] = {3}

    with pytest.raises(ValueError, match="tags can only be read as a pickle"):
        session.variables.import_(exported)
    session.variables.import_(exported, trust=True)

    assert session.variables["tags"] == {1, 2}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    session = open_session("one", store=tmp_path / "s.sqlite")

    with pytest.raises(FileNotFoundError) as caught:
        export_session(session, tmp_path / "nowhere" / "one.json")

    assert caught.value.filename == str(tmp_path / "nowhere" / "one.json")
