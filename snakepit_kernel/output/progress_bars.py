"""Progress bars of workers, drawn in the caller's process: by tqdm, or else as lines of text."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

from ..locks import RLock

Settings = Mapping[str, Any]
"""State and appearance of a bar, by tqdm's names; missing ones have tqdm's defaults."""

_INITIAL_SETTINGS = ("total", "leave", "unit_scale", "ncols", "dynamic_ncols", "colour")
"""Settings that tqdm's notebook bar needs at its creation. All others are read when it is drawn."""


class Bar(Protocol):
    """A progress bar that is updated with another process's state."""

    def show(self, settings: Settings) -> None:
        """Show a new state."""

    def close(self, settings: Settings | None = None) -> None:
        """Close it in its last state, which may be given.

        A bar that is not complete shows that it was interrupted.
        """


def open_bar(settings: Settings) -> Bar:
    """Open a new bar: tqdm's where it is installed, else lines of text."""
    kind = _bar_class(in_notebook=shell_of_notebook() is not None)
    bar: Bar = LineBar() if kind is None else TqdmBar(kind, settings)
    if settings["n"]:  # a bar at 0 was drawn by its creation
        bar.show(settings)
    return bar


@contextlib.contextmanager
def bars_cleared() -> Iterator[None]:
    """Clear the text bars during a block that prints lines, and redraw them."""
    module = sys.modules.get("tqdm.std")
    kind = None if module is None else _remote_bar_class(module.tqdm)
    if kind is None or not kind._instances:  # noqa: SLF001 - it is ours
        yield
        return
    with kind.get_lock(), kind.external_write_mode(file=sys.stderr, nolock=True):
        yield


def shell_of_notebook() -> Any:
    """Return IPython's shell where it belongs to a kernel, else None."""
    # Not get_ipython(): in a worker that would build the shell.
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None or not module.InteractiveShell.initialized():
        return None
    shell = module.InteractiveShell.instance()
    return shell if getattr(shell, "kernel", None) is not None else None


class TqdmBar:
    """A bar of tqdm whose state is set.

    Parameters
    ----------
    kind
        Class of the bar, see `_remote_bar_class`.
    settings
        The first ones.
    """

    def __init__(self, kind: Any, settings: Settings) -> None:
        self._bar = kind(settings)

    def show(self, settings: Settings) -> None:
        """Show a new state."""
        self._update(settings)
        self._bar.refresh()

    def close(self, settings: Settings | None = None) -> None:
        """Close it in its last state."""
        if settings is not None:
            self._update(settings)
        self._bar.close()  # which draws it

    def _update(self, settings: Settings) -> None:
        bar = self._bar
        bar.settings = settings
        if bar.total != (total := settings.get("total")):
            bar.reset(total)  # the only way to update the widget
        bar.n, bar.total = settings["n"], total
        bar.leave = settings.get("leave", True)
        bar.colour = settings.get("colour")


class LineBar:
    """A bar where tqdm is not installed: a line for each tenth of progress."""

    def __init__(self) -> None:
        self._settings: Settings = {"n": 0}
        self._tenths = 0
        self._is_written = True

    def show(self, settings: Settings) -> None:
        """Write a line if a tenth has been completed."""
        self._is_written = self._is_written and settings["n"] == self._settings["n"]
        self._settings = settings
        total = settings.get("total")
        tenths = int(10 * settings["n"] / total) if total else 0
        if tenths != self._tenths:
            self._tenths = tenths
            self._write()

    def close(self, settings: Settings | None = None) -> None:
        """Write the final state."""
        if settings is not None:
            self.show(settings)
        if not self._is_written:
            self._write()

    def _write(self) -> None:
        self._is_written = True
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


def _bar_class(*, in_notebook: bool) -> Any:
    """Return the class of bars for this process; None when tqdm is not installed."""
    try:
        if in_notebook:
            import ipywidgets  # noqa: F401 - tqdm warns when it is missing; its text bar does
            from tqdm.auto import tqdm
        else:
            from tqdm.std import tqdm
    except ImportError:
        return _bar_class(in_notebook=False) if in_notebook else None
    return _remote_bar_class(tqdm)


@functools.cache
def _remote_bar_class(kind: Any) -> Any:
    """Derive a class of tqdm bars that show a state they are given."""
    from tqdm.std import tqdm as base

    class RemoteBar(kind):  # type: ignore[misc]
        """A bar of a worker.

        It shares neither lock nor list with the notebook's own bars: tqdm's lock stays locked when
        Ctrl-C comes while a bar is drawn, and a pool's loop thread would wait for ever.
        """

        monitor_interval = 0  # no thread that redraws stalled bars
        _lock = RLock()
        _instances: ClassVar[WeakSet[Any]] = WeakSet()

        def __init__(self, settings: Settings) -> None:
            self.settings = settings
            super().__init__(
                **{name: settings[name] for name in _INITIAL_SETTINGS if name in settings}
            )

        @classmethod
        def _get_free_pos(cls, instance: Any = None) -> int:
            """Return a line below the notebook's own bars."""
            return int(super()._get_free_pos(instance)) + len(base._instances)  # noqa: SLF001

        @property
        def format_dict(self) -> dict[str, Any]:
            """The values to draw, with the worker's clock and speed instead of this process's."""
            return {**super().format_dict, **self.settings}

        def display(self, *args: Any, **kwargs: Any) -> Any:
            """Draw the bar; disable it if that fails: it is also drawn when it is collected."""
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

    return RemoteBar
