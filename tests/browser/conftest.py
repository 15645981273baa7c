"""A real JupyterLab, and a real browser that looks at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import ConsoleMessage, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

PATIENCE = 40_000
"""Milliseconds for what JupyterLab does on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="no chromium is installed: apt-get install chromium")
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(skip)


class Lab:
    """A notebook in JupyterLab, as somebody sees it who sits before it.

    Attributes
    ----------
    errors
        What the browser complained of.
    server
        The Jupyter server.
    """

    def __init__(self, page: Page, server: Any) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        status = self.page.locator("#jp-main-statusbar")
        expect(status).to_contain_text("Python 3 (Snakepit) | Idle")
        self.cell(0).locator(".cm-content").click()

    def cell(self, number: int) -> Locator:
        """Find a code cell."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def run(self, number: int) -> Locator:
        """Run a cell, the first or the one after the last; find its output when it has ended."""
        self.page.keyboard.press("Shift+Enter")
        expect(self.cell(number).locator(".jp-InputPrompt")).to_have_text(f"[{number + 1}]:")
        return self.cell(number).locator(".jp-Cell-outputWrapper")

    def see(self, part: Locator, *, is_shown: bool) -> None:
        """Show or hide a part of the page; return when the page's observers were told."""
        part.evaluate(
            """(element, isShown) => new Promise((resolve) => {
                element.style.position = isShown ? "" : "absolute";
                element.style.left = isShown ? "" : "-9999px";
                new IntersectionObserver((entries, observer) => {
                    if (entries[0].isIntersecting !== isShown) return;
                    observer.disconnect();
                    setTimeout(resolve);
                }).observe(element);
            })""",
            is_shown,
        )


@pytest.fixture
def open_lab(
    start_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Lab]]:
    """Open a notebook of the given cells on our kernel, in a theme."""
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("JUPYTERLAB_WORKSPACES_DIR", str(tmp_path / "workspaces"))
    expect.set_options(timeout=PATIENCE)
    pages: list[Page] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )

        def open_one(*cells: str, theme: str = "JupyterLab Light") -> Lab:
            (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
            document = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
            document.metadata["kernelspec"] = {
                "name": "snakepit",
                "display_name": "Python 3 (Snakepit)",
                "language": "python",
            }
            nbformat.write(document, tmp_path / "shop.ipynb")
            server = start_server()
            pages.append(browser.new_page(viewport={"width": 1200, "height": 1100}))
            lab = Lab(pages[-1], server)
            lab.open(f"http://127.0.0.1:{server.port}/lab/tree/shop.ipynb?token=t")
            return lab

        yield open_one
        for number, page in enumerate(pages):
            page.screenshot(path=tmp_path / f"last-{number}.png")
        browser.close()
