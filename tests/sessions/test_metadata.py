"""What is noted about a session."""

from __future__ import annotations

import pytest

from snakepit_kernel.errors import SessionNotFound, ValueTooLarge
from snakepit_kernel.sessions.state import open_session


def test_notes_behave_like_a_dictionary_and_outlive_who_wrote_them(session, store):
    session.metadata["author"] = "me"
    session.metadata.update({"tags": {"a", "b"}, "n": 1})
    again = open_session("s", store=store).metadata
    assert dict(again) == {"author": "me", "n": 1, "tags": {"a", "b"}}
    assert (len(again), "n" in again, again.get("x", 5)) == (3, True, 5)
    del again["n"]
    assert sorted(session.metadata) == ["author", "tags"]
    for use in (lambda: session.metadata["n"], lambda: session.metadata.__delitem__("n")):
        with pytest.raises(KeyError):
            use()


def test_a_session_begins_with_its_notes_and_an_old_one_keeps_its_own(store):
    assert dict(open_session("new", store=store, metadata={"a": 1}).metadata) == {"a": 1}
    assert dict(open_session("new", store=store, metadata={"a": 2}).metadata) == {"a": 1}


def test_a_session_whose_first_notes_cannot_be_is_not_made(store):
    with pytest.raises(TypeError, match="metadata 'a'"):
        open_session("new", store=store, metadata={"a": __import__("threading").Lock()})
    assert store.sessions.all() == []


@pytest.mark.parametrize("name", ["", 1, None])
def test_a_note_needs_a_name(session, name):
    with pytest.raises(TypeError, match="named by text"):
        session.metadata[name] = 1


def test_a_note_has_a_limit_and_its_text_has_no_values(session):
    session.metadata["secret"] = "hunter2"
    with pytest.raises(ValueTooLarge, match="metadata 'secret'"):
        session.metadata["secret"] = "hunter2" * 200_000
    assert session.metadata["secret"] == "hunter2"
    assert "hunter2" not in repr(session.metadata)


def test_notes_of_a_session_that_was_deleted_are_gone(session, store):
    other = open_session("s", store=store)
    other.metadata["a"] = 1
    session.delete()
    for use in (lambda: dict(other.metadata), lambda: other.metadata.update(a=2)):
        with pytest.raises(SessionNotFound):
            use()
    assert dict(open_session("s", store=store).metadata) == {}
