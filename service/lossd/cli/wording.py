"""Messages of the service in the words of the command line."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

import click

__all__ = ["counted", "fitted", "in_commands", "on_terminal", "say"]

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

    text = re.sub(r"\bset metrics\.(\w+) to (\w+)", r"pass --metric-option \1=\2", text)
    text = re.sub(r"\bset metrics\.(\w+) to (\w+)", r"pass --metric-option \1=\2", text)
    text = re.sub(r"\bset metrics\.(\w+) to (\w+)", r"pass --metric-option \1=\2", text)
    text = re.sub(r"\bmetrics\.(\w+)", option, text)
    text = re.sub(r"\bloss\.(\w+)", lambda field: "--" + field[1].replace("_", "-"), text)
    return re.sub(r"(?<![\w-])x=(\w+)", r"--x \1", text)


def on_terminal(text: str, *, err: bool = True) -> str:
    """Return a message for standard error, or for standard output: on a terminal, its lines end between words."""
    if not (sys.stderr if err else sys.stdout).isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = (textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join(lines)


def say(text: str) -> None:
    """Print a message to standard error."""
    click.echo(on_terminal(in_commands(text)), err=True)


def counted(number: int, total: int | None, what: str) -> str:
    """Return a number of things: ``1 file``, ``2 of 6 files``.

    Args:
        number: How many.
        total: How many there are in all; None to leave that out.
        what: What they are, in the singular.
    """
    ending = "" if (number if total is None else total) == 1 else "es" if what.endswith("ch") else "s"
    return f"{number:,}{'' if total is None else f' of {total:,}'} {what}{ending}"


def fitted(error: click.ClickException) -> click.ClickException:
    """Return an error of the command line whose message fits the terminal."""
    text = on_terminal(f"Error: {in_commands(error.format_message())}").removeprefix("Error: ")
    usage = isinstance(error, click.UsageError)
    shown = click.UsageError(text, error.ctx) if usage else click.ClickException(text)  # type: ignore[attr-defined]
    shown.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance
    return shown
