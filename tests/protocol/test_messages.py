"""Messages of a lane: what is none is refused where it arrives."""

from __future__ import annotations

import msgspec
import pytest

from snakepit_kernel.protocol import messages


@pytest.mark.parametrize("part", ["variables", "programs", "metadata"])
def test_a_call_of_a_part_of_the_session_arrives_as_it_was_sent(part):
    sent = messages.SessionCall(1, messages.CELL, True, part, "value")

    assert messages.decode_from_worker(messages.encode(sent)) == sent


def test_a_call_of_a_part_that_no_session_has_is_refused():
    sent = messages.SessionCall(1, messages.CELL, True, "secrets", "value")

    with pytest.raises(msgspec.ValidationError, match="secrets"):
        messages.decode_from_worker(messages.encode(sent))
