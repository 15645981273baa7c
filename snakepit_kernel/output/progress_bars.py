"""Progress bars of workers as their caller sees them: tqdm's own, or lines of text without tqdm."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

from ..locks import RLock

Settings = Mapping[str, Any]
"""How far a bar is, and how it looks, by tqdm's names; what is missing is as tqdm has it."""

_FIRST = ("total", "leave", "unit_scale", "ncols", "dynamic_ncols", "colour")
"""What tqdm's bar in a notebook is made from. All else is looked up each time it is drawn."""


class Bar(Protocol):
    """One bar that somebody else moves."""

    def show(self, settings: Settings) -> None:
        """Show how far it is."""

    def close(self, settings: Settings | None = None) -> None:
        """Let it stand where it is, and take in first where that is, if there is news of it.

        One that has not come to its end shows that it was interrupted.
        """


def open_bar(settings: Settings) -> Bar:
    """Show a new bar: by tqdm where it is installed, else by lines of text."""
    kind = _kind(in_notebook=shell_of_notebook() is not None)
    bar: Bar = LineBar() if kind is None else TqdmBar(kind, settings)
    if settings["n"]:  # one that has just begun is there already
        bar.show(settings)
    return bar


@contextlib.contextmanager
def bars_aside() -> Iterator[None]:
    """Give the place of the bars that are text, for a moment, to who writes lines."""
    module = sys.modules.get("tqdm.std")
    kind = None if module is None else _followed(module.tqdm)
    if kind is None or not kind._instances:  # noqa: SLF001 - it is ours
        yield
        return
    with kind.get_lock(), kind.external_write_mode(file=sys.stderr, nolock=True):
        yield


def shell_of_notebook() -> Any:
    """Return IPython's shell where it belongs to a kernel, else None."""
    # Not get_ipython(): a worker that asks for its shell has it built.
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None or not module.InteractiveShell.initialized():
        return None
    shell = module.InteractiveShell.instance()
    return shell if getattr(shell, "kernel", None) is not None else None


class TqdmBar:
    """A bar of tqdm that is told where it is.

    Parameters
    ----------
    kind
        Class of the bar, see `_followed`.
    settings
        The first ones.
    """

    def __init__(self, kind: Any, settings: Settings) -> None:
        self._bar = kind(settings)

    def show(self, settings: Settings) -> None:
        """Show how far it is."""
        self._take(settings)
        self._bar.refresh()

    def close(self, settings: Settings | None = None) -> None:
        """Let it stand where it is."""
        if settings is not None:
            self._take(settings)
        self._bar.close()  # which draws it

    def _take(self, settings: Settings) -> None:
        bar = self._bar
        bar.told = settings
        if bar.total != (total := settings.get("total")):
            bar.reset(total)  # the one way to tell the widget
        bar.n, bar.total = settings["n"], total
        bar.leave = settings.get("leave", True)
        bar.colour = settings.get("colour")


class LineBar:
    """A bar where tqdm is not installed: a line whenever it has moved by a tenth."""

    def __init__(self) -> None:
        self._settings: Settings = {"n": 0}
        self._tenths = 0
        self._is_told = True

    def show(self, settings: Settings) -> None:
        """Write a line when there is something new to say."""
        self._is_told = self._is_told and settings["n"] == self._settings["n"]
        self._settings = settings
        total = settings.get("total")
        tenths = int(10 * settings["n"] / total) if total else 0
        if tenths != self._tenths:
            self._tenths = tenths
            self._write()

    def close(self, settings: Settings | None = None) -> None:
        """Write where it ended."""
        if settings is not None:
            self.show(settings)
        if not self._is_told:
            self._write()

    def _write(self) -> None:
        self._is_told = True
        if sys.stderr is not None:
            sys.stderr.write(f"{self._line()}\n")

    def _line(self) -> str:
        settings = self._settings
        n, total, unit = settings["n"], settings.get("total"), settings.get("unit")
        of_total = f" of {total:.6g}" if total else ""
        parts = [
            settings.get("prefix", "").removesuffix(": "),
            f"{n / total:.0%}" if total else "",
            f"{n:.6g}{of_total} {unit}" if unit else "",
            settings.get("postfix"),
        ]
        return ", ".join(part for part in parts if part)


def _kind(*, in_notebook: bool) -> Any:
    """Return the class of bars for here; None when tqdm is not installed."""
    try:
        if in_notebook:
            import ipywidgets  # noqa: F401 - tqdm warns when it is missing; its text bar does
            from tqdm.auto import tqdm
        else:
            from tqdm.std import tqdm
    except ImportError:
        return _kind(in_notebook=False) if in_notebook else None
    return _followed(tqdm)


@functools.cache
def _followed(kind: Any) -> Any:
    """Derive from a class of tqdm one whose bars show what they are told."""
    from tqdm.std import tqdm as base

    class FollowedBar(kind):  # type: ignore[misc]
        """A bar of a worker.

        It shares neither lock nor list with the notebook's own bars: tqdm's lock stays locked when
        Ctrl-C comes while a bar is drawn, and the thread that keeps a pool would wait for ever.
        """

        monitor_interval = 0  # no thread that draws what has not moved
        _lock = RLock()
        _instances: ClassVar[WeakSet[Any]] = WeakSet()

        def __init__(self, told: Settings) -> None:
            self.told = told
            super().__init__(**{name: told[name] for name in _FIRST if name in told})

        @classmethod
        def _get_free_pos(cls, instance: Any = None) -> int:
            """Return a line below the notebook's own bars."""
            return int(super()._get_free_pos(instance)) + len(base._instances)  # noqa: SLF001

        @property
        def format_dict(self) -> dict[str, Any]:
            """What the bar is drawn from: the worker's own clock and speed, not those of here."""
            return {**super().format_dict, **self.told}

        def display(self, *args: Any, **kwargs: Any) -> Any:
            """Draw the bar; never again when that fails: it is drawn when it is collected, too."""
            try:
                return super().display(*args, **kwargs)
            except BaseException:
                self.disable = True
                raise

        def refresh(self, *_: Any, **__: Any) -> None:
            """Draw the bar; unlike tqdm's own, Ctrl-C cannot leave the lock locked."""
            if not self.disable:
                with self._lock:
                    self.display()

    return FollowedBar
