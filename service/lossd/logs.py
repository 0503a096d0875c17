"""A process's log: JSON for machines, or text for people at a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["JsonFormatter", "LogLine", "TextFormatter", "configure", "handler", "start"]

HALF = 4096  # of the characters of a message or a traceback


def configure(settings: Settings) -> None:
    """Send this process's log to standard error, in the format of the settings."""
    start(settings.log_level, settings.log_format)


def start(level: str, form: str) -> None:
    """Send this process's log to standard error.

    Args:
        level: The lowest level that is logged, such as info.
        form: text, json, or auto: text on a terminal.
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form)], force=True)


def handler(form: str) -> logging.StreamHandler[TextIO]:
    """Return a handler that writes to standard error, in the form that :func:`start` takes."""
    terminal = sys.stderr is not None and sys.stderr.isatty()  # a process may lack standard error
    as_text = terminal if form == "auto" else form == "text"
    writer = logging.StreamHandler()
    writer.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s") if as_text else JsonFormatter())
    return writer


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line: time, level, logger, and fields or a message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "logger": record.name}
        document |= record.msg if isinstance(record.msg, LogLine) else {"message": _escaped(record.getMessage())}
        if record.exc_info:
            document["traceback"] = _escaped(self.formatException(record.exc_info))
        return orjson.dumps(document, default=str).decode()


class TextFormatter(logging.Formatter):
    """Formats a record as text that cannot control the terminal, whatever an error repeats of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it."""
        return _escaped(super().format(record))


def _escaped(text: str) -> str:
    """Return a text that may repeat a request as a log prints it: printable, and cut where it is long."""
    cut = text if len(text) <= 2 * HALF else f"{text[:HALF]} ... {text[-HALF:]}"
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in cut)


class LogLine(dict[str, Any]):
    """The fields of a line, which text logs print as name=value."""

    def __str__(self) -> str:
        text = " ".join(f"{name}={_shown(value)}" for name, value in self.items())
        # A client's text must not send control characters to the terminal.
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{_shown(part)}" for name, part in value.items())
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
