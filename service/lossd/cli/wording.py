"""Messages of the service in the words of the command line."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

__all__ = ["in_commands", "on_terminal"]

COMMANDS_OF_ROUTES = {
    "GET /v1/losses": "lossd losses",
    "GET /v1/metrics": "lossd metrics",
    "GET /v1/runs": "lossd runs",
}
"""The commands that show what routes answer."""


def in_commands(text: str) -> str:
    """Return a message with commands in place of routes, and options in place of fields of a request."""
    from lossd.request.options import MetricOptions

    for route, name in COMMANDS_OF_ROUTES.items():
        text = re.sub(rf"{route}(?![\w/?])", name, text)

    def option(field: re.Match[str]) -> str:
        name = field[1]
        if name == "names":
            return "--metrics"
        return f"--metric-option {name}" if name in MetricOptions.model_fields else field[0]

    return re.sub(r"\bmetrics\.(\w+)", option, text)


def on_terminal(text: str) -> str:
    """Return a message for standard error: on a terminal, its lines end between words."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
