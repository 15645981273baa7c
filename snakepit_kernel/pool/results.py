"""What a cell in a worker gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import CellError


@dataclass(slots=True, kw_only=True)
class CellResult:
    """The result of a cell that ran in a worker.

    Attributes
    ----------
    outputs
        What the cell showed, as in a notebook file (nbformat 4 output dictionaries), in order;
        neighbouring texts of one stream are one output.
    error
        The exception that ended the cell, or None.
    value
        The value of the cell's last expression, or None. An object that cannot travel is an error
        of `CellResult.value_error`, and its text is in ``outputs`` all the same.
    pulled
        The variables that were asked for by ``pull``, by name.
    value_error
        Why ``value`` could not travel, or None.
    execution_count
        The worker's prompt number.
    worker
        Name of the worker that ran it.
    pages
        What the cell had for the pager, as ``len?`` has it: dictionaries by MIME type.
    """

    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: CellError | None = None
    value: Any = None
    value_error: Exception | None = None
    pulled: dict[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    worker: str = ""
    pages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the cell ended without an exception."""
        return self.error is None

    @property
    def stdout(self) -> str:
        """What the cell wrote to standard output."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """What the cell wrote to standard error."""
        return self._stream("stderr")

    def _stream(self, name: str) -> str:
        return "".join(
            output["text"]
            for output in self.outputs
            if output["output_type"] == "stream" and output["name"] == name
        )
