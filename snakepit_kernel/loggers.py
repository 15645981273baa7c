"""Loggers whose records are safe to display, whatever they quote."""

from __future__ import annotations

import logging

from .printable import printable

_formatter = logging.Formatter()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module.

    Its records are printable, with the exceptions that they show: paths, names and texts of other
    processes, files and users stand in them. See `printable`.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), lines=True), ()
    if record.exc_info and not record.exc_text:
        text = _formatter.formatException(record.exc_info)
        record.exc_text = printable(text, lines=True)
    return True
