"""The look of help: headings and names are highlighted, and every command ends with examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

__all__ = ["Command", "Group"]

WIDE = 72
"""The width from which names and texts of help stand beside each other as click places them."""


class _Formatter(click.HelpFormatter):
    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        if self.width < WIDE:  # leave room for the texts; longer terms have a line of their own
            col_max = min(col_max, self.width // 3)
        super().write_dl([(click.style(term, fg="cyan"), text) for term, text in rows], col_max, col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class _WithExamples(click.Command):
    """A command, or a group of commands, with examples.

    Args:
        *arguments: Arguments of ``click.Command`` or ``click.Group``.
        examples: Lines as typed, without ``$``; a line of words explains the line below it.
        **options: Options of the same.
    """

    context_class = _Context

    def __init__(self, *arguments: Any, examples: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Command(_WithExamples):
    """A command with examples."""


class Group(_WithExamples, click.Group):
    """Commands in the order of their definition, not of the alphabet; with examples, if there are any."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return list(self.commands)
