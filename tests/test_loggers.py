"""What is logged does nothing to the terminal that shows it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from snakepit_kernel.loggers import get_logger
from snakepit_kernel.processes.leftovers import remove_leftover

EVIL = "\x1b]0;title\x07\u202e"
HARMLESS = r"\x1b]0;title\x07\u202e"


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What a handler writes of the package's records."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    logger = logging.getLogger("snakepit_kernel")
    logger.addHandler(handler)
    yield shown
    logger.removeHandler(handler)


def test_records_are_printable_with_what_they_quote_and_their_exceptions(shown):
    logger = get_logger("snakepit_kernel.of_a_test")
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.warning("100 %% of %s", EVIL, exc_info=True)

    assert shown.getvalue().startswith(f"100 % of {HARMLESS}\nTraceback ")
    assert shown.getvalue().endswith(f"ValueError: {HARMLESS}\n")


def test_a_path_out_of_a_database_is_shown_printable(shown, tmp_path):
    (tmp_path / EVIL.replace("/", "")).touch()

    remove_leftover(str(tmp_path / EVIL))

    assert HARMLESS in shown.getvalue()
    assert "\x1b" not in shown.getvalue()
