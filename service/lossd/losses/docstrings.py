"""The parts of a Google-style docstring that the catalogue shows."""

from __future__ import annotations

import textwrap

__all__ = ["Docstring"]


class Docstring:
    """A docstring, divided into its parts.

    Args:
        text: The docstring without its indentation.

    Attributes:
        text: The whole docstring.
        summary: Its first line.
        arguments: The description of each argument, by name.
        formula: The first formula, LaTeX; empty if there is none.
        references: The references, a line each.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.summary = text.partition("\n")[0]
        sections = self._sections(text)
        self.arguments = self._arguments(sections.get("Args", ""))
        self.references = tuple(_paragraphs(sections.get("References", "")))
        self.formula = self._formula(text)

    @staticmethod
    def _sections(text: str) -> dict[str, str]:
        sections: dict[str, str] = {}
        name = ""
        for line in text.splitlines():
            if line.endswith(":") and line[:-1].isalpha() and line[0] != " ":
                name = line[:-1]
            elif name:
                sections[name] = sections.get(name, "") + line + "\n"
        return {name: textwrap.dedent(body).strip("\n") for name, body in sections.items()}

    @staticmethod
    def _arguments(section: str) -> dict[str, str]:
        return {name: rest.strip() for name, _, rest in (item.partition(":") for item in _paragraphs(section)) if rest}

    @staticmethod
    def _formula(text: str) -> str:
        _, found, rest = text.partition(".. math::")
        if not found:
            return ""
        lines = rest.splitlines()
        body = [lines[0].strip()]
        for line in lines[1:]:
            if line and not line.startswith(" "):
                break
            body.append(line.strip())
        return " ".join(part for part in body if part)


def _paragraphs(section: str) -> list[str]:
    """Return the items of a section: each starts at the margin, its continuation lines are indented."""
    items: list[str] = []
    for line in section.splitlines():
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line.strip())
    return items
