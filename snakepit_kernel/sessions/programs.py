"""Programs and metadata of a session, as mappings for users."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from ..printable import printable
from ..tracebacks import hides_own_frames
from .values import Program

ProgramList = list[Program]
Names = list[str]

Find = Callable[[str], Callable[..., Any]]


@hides_own_frames
class Programs(MutableMapping[str, Any]):
    """Named objects, models and pipelines for instance, that outlive the kernel.

    A mapping. An object is stored as it is at that moment, and replaced as a whole: a reader gets
    the old one or the new one. Reading returns a new copy each time.

    Parameters
    ----------
    find
        Returns a method of the `ProgramService`, which may be in another process.
    """

    def __init__(self, find: Find) -> None:
        self._find = find

    def __getitem__(self, name: str) -> Any:
        return self._find("load")(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._find("put")(name, value)

    def put(
        self,
        name: str,
        value: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        ttl: float | None = None,
    ) -> Program:
        """Store an object under a name.

        Parameters
        ----------
        name
            1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
        value
            Anything that can be pickled.
        metadata
            For people and programs: a dictionary of JSON values.
        ttl
            Seconds that a global program lives without being used. Default: 3,600.

        Raises
        ------
        QuotaExceeded
            There are 200 already, or 10,000 global ones.
        TypeError, ValueTooLarge
            It cannot be pickled, or is larger than 2 GiB.
        """
        stored: Program = self._find("put")(name, value, metadata, ttl)
        return stored

    def __delitem__(self, name: str) -> None:
        self._find("delete")(name)

    def __iter__(self) -> Iterator[str]:
        return iter([program.name for program in self.list()])

    def __len__(self) -> int:
        return len(self.list())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._find("has")(name))  # without reading it

    def list(self) -> ProgramList:
        """Describe all programs, in the order of their names."""
        programs: ProgramList = self._find("infos")()
        return programs

    def info(self, name: str) -> Program:
        """Describe a program: size, version, checksum, metadata.

        Raises
        ------
        ProgramNotFound
            There is none of that name.
        """
        program: Program = self._find("info")(name)
        return program

    def __repr__(self) -> str:
        return f"<Programs {printable(', '.join(self))}>"

    def _ipython_key_completions_(self) -> Names:
        return [*self]


@hides_own_frames
class Metadata(MutableMapping[str, Any]):
    """Metadata of a session: small values by name, as durable as its variables.

    Parameters
    ----------
    find
        Returns a method of the `MetadataService`, which may be in another process.
    """

    def __init__(self, find: Find) -> None:
        self._find = find

    def __getitem__(self, name: str) -> Any:
        return self._find("all")()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._find("put")(name, value)

    def __delitem__(self, name: str) -> None:
        self._find("delete")(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._find("all")())

    def __len__(self) -> int:
        return len(self._find("all")())

    def __repr__(self) -> str:
        return f"<Metadata {printable(', '.join(self))}>"

    def _ipython_key_completions_(self) -> Names:
        return [*self]
