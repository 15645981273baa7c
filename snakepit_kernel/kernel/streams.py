"""Standard streams of a worker's cells."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ipykernel.iostream import OutStream

_NUMBERS = {"stdout": 1, "stderr": 2}


class Keeper(Protocol):
    """Separates a worker's output of calls from that of cells."""

    logs: dict[str, int]
    """Descriptors of the worker's log, by the name of the stream."""

    def take(self, name: str, text: str) -> bool:
        """Store a text that belongs to a call; return False if it does not."""

    def take_in(self) -> None:
        """Read what was written to the descriptors so far."""


class WorkerStream(OutStream):
    """A stream of ipykernel whose text may belong to a call, and whose descriptor is watched.

    Attributes
    ----------
    keeper
        Decides whose a text is; set before the first stream is created.
    """

    keeper: ClassVar[Keeper]

    def __init__(self, session: Any, pub_thread: Any, name: str, **options: Any) -> None:
        # The worker watches the descriptors itself, for calls as well.
        super().__init__(session, pub_thread, name, **{**options, "watchfd": False})
        self._original_stdstream_copy = self.keeper.logs[name]  # where ipykernel's own log goes

    def fileno(self) -> int:
        """Return its standard descriptor; what is written there is shown, too."""
        return _NUMBERS[self.name]

    def write(self, string: str) -> int:
        """Write a text to the call that it belongs to, or to the cell."""
        if isinstance(string, str) and self.keeper.take(self.name, string):
            return len(string)
        return super().write(string) or len(string)

    def flush(self) -> None:
        """Send the printed text, and what was written to the descriptors."""
        self.keeper.take_in()
        super().flush()
