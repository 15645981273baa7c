"""What a worker's cells print to."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ipykernel.iostream import OutStream

_NUMBERS = {"stdout": 1, "stderr": 2}


class Keeper(Protocol):
    """Who knows what of a worker's output belongs to calls."""

    logs: dict[str, int]
    """Descriptors of the worker's log, by the name of the stream."""

    def take(self, name: str, text: str) -> bool:
        """Take a text that is a call's; say whether it is one."""

    def take_in(self) -> None:
        """Take in what was written to the descriptors so far."""


class WorkerStream(OutStream):
    """A stream of ipykernel whose text may belong to a call, and whose descriptor is watched.

    Attributes
    ----------
    keeper
        Who is asked; set before the first one is made.
    """

    keeper: ClassVar[Keeper]

    def __init__(self, session: Any, pub_thread: Any, name: str, **options: Any) -> None:
        # The worker watches the descriptors itself, for calls as well.
        super().__init__(session, pub_thread, name, **{**options, "watchfd": False})
        self._original_stdstream_copy = self.keeper.logs[name]  # where ipykernel's own log goes

    def fileno(self) -> int:
        """Return the descriptor that belongs to it: what is written there is shown."""
        return _NUMBERS[self.name]

    def write(self, string: str) -> int:
        """Print a text where it belongs."""
        if isinstance(string, str) and self.keeper.take(self.name, string):
            return len(string)
        return super().write(string) or len(string)

    def flush(self) -> None:
        """Send what was printed, and what was written to the descriptors."""
        self.keeper.take_in()
        super().flush()
