"""Under nbval the cells of a notebook run in their order, whatever shuffles tests."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put cells back into the order of their notebooks."""
    items.sort(key=lambda item: (str(item.path), getattr(item, "cell_num", -1)))
