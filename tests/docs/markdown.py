"""Markdown written from code: tables, formulas, and what docstrings say."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r"^\.\. math:: *(.*(?:\n+(?: {4}).*)*)$", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_SECTION = re.compile(r"^([A-Z][A-Za-z ]+):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
_UNQUOTED = re.compile(r"(?<=: )'([^'\n]*)'(?=[ ,)])")
_ENTRY = re.compile(r"^(\S+?)(?: \([^)]*\))?: ", re.MULTILINE)


def table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table; the cells' line ends and bars are taken care of."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    )


def formula(latex: str, display: str = "block") -> str:
    """The formula as MathML, which browsers draw themselves: no script, no fonts to load."""
    mathml = convert(latex, display=display)
    # Signs that mean something to Markdown, which looks for them inside of inline tags too.
    return re.sub(r">([*_`])<", lambda sign: f">&#{ord(sign[1])};<", mathml)


def prose(text: str) -> str:
    """A docstring's reStructuredText, of which little is in use, as Markdown."""
    words, formulas = _FORMULA.split(text)[::2], _FORMULA.findall(text)
    shown = [_words(part) for part in words]
    for position, latex in enumerate(formulas):
        shown[position] += "\n" + formula(" ".join(latex.split())) + "\n"
    return "".join(shown)


def _words(text: str) -> str:
    text = _DOCTEST.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", _ROLE.sub(r"``\1``", text))
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE).replace("::\n\n    ", ":\n\n    ")
    parts = re.split(r"(```.*?```|``.*?``|^ {4}.*$)", text, flags=re.DOTALL | re.MULTILINE)
    for at in range(0, len(parts), 2):
        parts[at] = parts[at].replace("<", "&lt;")
    return re.sub(r"(?<!`)``(?!`)", "`", "".join(parts))


def sections(documentation: str) -> dict[str, str]:
    """The parts of a Google-style docstring: what stands before the first under the empty name."""
    text = documentation.rstrip() + "\n"
    parts = {name: textwrap.dedent(body).strip("\n") for name, body in _SECTION.findall(text)}
    return {"": _SECTION.sub("", text).strip(), **parts}


def entries(section: str) -> dict[str, str]:
    """Name to description, of a section such as ``Args``."""
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line[:1].strip() and (match := _ENTRY.match(line)):
            name = match[1]
            line = line[match.end() :]
        if name:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def documented(thing: Any, heading: str, title: str) -> str:
    """A class or function: its signature, and its docstring's parts as lists.

    Args:
        thing: The object.
        heading: The hashes of its heading.
        title: What the heading says.
    """
    parts = sections(inspect.getdoc(thing) or "")
    lines = [
        f"{heading} {title}",
        "",
        "```py",
        f"{title.strip('`')}{_signature(thing)}",
        "```",
        "",
        prose(parts.pop("")),
    ]
    for name, body in parts.items():
        lines += ["", f"**{'Arguments' if name == 'Args' else name}**", ""]
        listed = entries(body)
        lines += [f"- `{key}`: {prose(text)}" for key, text in listed.items()] or [prose(body)]
    return "\n".join(lines) + "\n"


def _signature(thing: Any) -> str:
    if isinstance(thing, property):
        return ""
    signature = inspect.signature(thing)
    shown = [p for p in signature.parameters.values() if p.name != "self"]
    end = "" if inspect.isclass(thing) else f" -> {signature.return_annotation}"
    listed: list[str] = []
    for p in shown:
        if p.kind is p.KEYWORD_ONLY and not any(entry.startswith("*") for entry in listed):
            listed.append("*")
        listed.append(str(p))
    one_line = f"({', '.join(listed)}){end}"
    lines = "(\n" + "".join(f"    {entry},\n" for entry in listed) + f"){end}"
    return _UNQUOTED.sub(r"\1", one_line if len(one_line) < 80 else lines)
