"""Identifiers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import snakepit_kernel
from snakepit_kernel.ids import (
    RUN_ID_VARIABLE,
    check_name,
    is_run_id,
    new_run_id,
    own_run_id,
    run_id_of_number,
    run_number,
)


def test_run_ids_minted_by_many_processes_at_once_are_distinct_and_well_formed():
    code = "from snakepit_kernel.ids import new_run_id\nfor _ in range(25): print(new_run_id())"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]

    minted = [line for process in processes for line in process.communicate()[0].split()]

    assert len(set(minted)) == len(minted) == 200
    assert all(re.fullmatch(r"[a-z2-7]{13}", run_id) for run_id in minted)


def test_a_minted_run_id_is_recognised():
    assert is_run_id(new_run_id())


def test_a_run_id_survives_as_a_number():
    for run_id in [new_run_id() for _ in range(100)]:
        assert run_id_of_number(run_number(run_id)) == run_id
        assert 0 <= run_number(run_id) < 2**60


@pytest.mark.parametrize(
    "text", ["", "a" * 12, "a" * 14, "A" * 13, "a" * 12 + "1", "a" * 13 + "\n"]
)
def test_a_text_that_is_no_run_id_is_not_taken_for_one(text):
    assert not is_run_id(text)


def test_the_own_run_is_read_from_the_environment(monkeypatch):
    run_id = new_run_id()
    monkeypatch.setenv(RUN_ID_VARIABLE, run_id)
    assert own_run_id() == run_id


@pytest.mark.parametrize("value", [None, "", "../../etc", "x" * 13 + ";"])
def test_without_a_well_formed_tag_a_process_belongs_to_no_run(monkeypatch, value):
    monkeypatch.delenv(RUN_ID_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(RUN_ID_VARIABLE, value)
    assert own_run_id() is None


@pytest.mark.parametrize("name", ["a", "0", "gpu-1", "a.b_c-D", "x" * 64])
def test_a_good_name_is_returned(name):
    assert check_name("pool", name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_a_bad_name_is_refused_with_what_a_good_one_looks_like(name):
    with pytest.raises(ValueError, match=r"^pool name .* must be 1 to 64 characters") as caught:
        check_name("pool", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_a_name_that_is_no_string_is_refused_with_its_type(name):
    with pytest.raises(TypeError, match=f"tool name must be a string, not {type(name).__name__}"):
        check_name("tool", name)


EVIL = [
    "../x",
    "a/b",
    "a'b",
    'a"b',
    "a\x1bb",
    "a\u202eb",
    "a\nb",
    "a%sb",
    "{a}",
    "$(id)",
    "a b",
    "-a",
]


@pytest.mark.parametrize("name", EVIL)
def test_no_pool_session_variable_or_program_has_a_name_that_means_more(tmp_path, name):
    session = snakepit_kernel.open_session("s", store=tmp_path / "sessions.sqlite")

    for use in (
        lambda: snakepit_kernel.Pool(1, name=name),
        lambda: snakepit_kernel.open_session(name, store=tmp_path / "sessions.sqlite"),
        lambda: session.fork(name),
        lambda: session.variables.register(name, "any", 1),
        lambda: session.variables.register_many({name: ("any", 1)}),
        lambda: session.programs.put(name, 1),
    ):
        with pytest.raises(ValueError, match="must be 1 to 64 characters"):
            use()
    assert (list(session.variables), list(session.programs)) == ([], [])
    session.store.close()
