"""The session of a notebook that is renamed in a Jupyter server, as JupyterLab does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def open_lab(
    start_server: Callable[..., Any], served_notebook: Callable[[Any], Any]
) -> Callable[[], Any]:
    """Open new notebooks in one server."""
    server = start_server()
    return lambda: served_notebook(server)


def test_a_notebook_that_is_renamed_keeps_its_session_and_the_next_has_its_own(open_lab):
    first = open_lab()
    first.run("%snakepit set secret='from-A'")
    path = first.path

    first.rename("analysis.ipynb")
    first.save("all", "new", "cells")
    first.restart()
    assert first.run("%snakepit get secret") == "'from-A'"

    second = open_lab()
    assert second.path == path
    assert "there is no variable 'secret'" in second.run("%snakepit get secret")
    second.run("%snakepit set secret='from-B'")
    second.rename("b.ipynb")
    first.reopen()
    second.restart()
    assert first.run("%snakepit get secret") == "'from-A'"
    assert second.run("%snakepit get secret") == "'from-B'"
