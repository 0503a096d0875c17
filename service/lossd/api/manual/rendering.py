"""Markdown as the manual's HTML: headings with anchors, links within the service, wide tables that scroll.

The HTML has no inline style or script, so the explorer's policy holds for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from posixpath import normpath
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from lossd.losses import REGISTRY
from lossd_client.errors import PROBLEMS

__all__ = ["Heading", "Rendered", "Section", "render"]

NAMING = frozenset(("which-loss", "losses", "expression", "glossary"))
"""The pages on which a loss's name, set as code, links to its page in the explorer."""

_PROBLEM = re.compile(r"/problems/([\w-]+)")
_TAG = re.compile(r"<[^>]*>")


class Heading(NamedTuple):
    """A heading of a page: its level, anchor and text."""

    level: int
    anchor: str
    text: str


class Section(NamedTuple):
    """The text below a heading, for the search."""

    heading: Heading
    text: str


class Rendered(NamedTuple):
    """A page: its title, HTML, headings below the title, and sections."""

    title: str
    html: str
    headings: list[Heading]
    sections: list[Section]


class _Renderer(RendererHTML):
    def table_open(self, tokens: Sequence[Token], i: int, options: OptionsDict, env: EnvType) -> str:
        return '<div class="scroll" tabindex="0" role="region" aria-label="A table"><table>'

    def table_close(self, tokens: Sequence[Token], i: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>\n"

    def fence(self, tokens: Sequence[Token], i: int, options: OptionsDict, env: EnvType) -> str:
        language = tokens[i].info.split(" ")[0] or "text"
        return f'<pre tabindex="0" data-language="{escape(language)}"><code>{escape(tokens[i].content)}</code></pre>\n'


def render(name: str, text: str, root: str, pages: frozenset[str]) -> Rendered:
    """Return a page of the manual.

    Args:
        name: The page's name.
        text: Its Markdown.
        root: The relative address of the service's root, from the page.
        pages: The names of all pages; links to other files become plain text.
    """
    parser = MarkdownIt("commonmark", {"html": True}, renderer_cls=_Renderer).enable("table")
    tokens = [token for token in parser.parse(text) if not _is_comment(token)]
    headings: list[Heading] = []
    sections: list[Section] = []
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            headings.append(_heading(token, tokens[i + 1].content, headings))
            sections.append(Section(headings[-1], ""))
        elif token.type in ("th_open", "td_open"):
            _align(token)
        elif token.type in ("inline", "fence") and sections and tokens[i - 1].type != "heading_open":
            heading, text = sections[-1]
            sections[-1] = Section(heading, " ".join(f"{text} {_plain(token)}".split()))
        if token.type == "inline":
            token.children = _linked(token.children or [], name, root, pages)
    html = parser.renderer.render(tokens, parser.options, {})
    return Rendered(headings[0].text, html, headings[1:], sections)


def _is_comment(token: Token) -> bool:
    return token.type == "html_block" and token.content.lstrip().startswith("<!--")


def _heading(token: Token, text: str, before: list[Heading]) -> Heading:
    """Give a heading its anchor, which is GitHub's."""
    anchor = re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-")
    same = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other.anchor) is not None for other in before)
    anchor = f"{anchor}-{same}" if same else anchor
    token.attrSet("id", anchor)
    return Heading(int(token.tag[1]), anchor, re.sub(r"`|\[|\]\([^)]*\)", "", text))


def _align(token: Token) -> None:
    """Replace a cell's inline style, which the policy forbids, with a class."""
    if token.attrs.pop("style", None) == "text-align:right":
        token.attrSet("class", "number")


def _plain(token: Token) -> str:
    if token.type == "fence":
        return token.content
    return "".join(child.content or " " for child in token.children or [] if child.type != "html_inline")


def _linked(children: list[Token], name: str, root: str, pages: frozenset[str]) -> list[Token]:
    """Return a line's tokens with links as they are in the service."""
    shown: list[Token] = []
    open_links: list[bool] = []
    for child in children:
        if child.type == "link_open":
            target = _target(str(child.attrGet("href")), root, pages)
            open_links.append(target is not None)
            if target is None:
                continue
            child.attrSet("href", target)
        elif child.type == "link_close" and not open_links.pop():
            continue
        elif child.type == "image":
            child.attrSet("src", f"{root}manual/{child.attrGet('src')}")
            child.attrSet("alt", child.content)
        elif child.type == "code_inline" and not open_links and (to := _meant(child.content, name, root)):
            shown += [Token("link_open", "a", 1, attrs={"href": to}), child, Token("link_close", "a", -1)]
            continue
        shown.append(child)
    return shown


def _target(href: str, root: str, pages: frozenset[str]) -> str | None:
    """Return the address of a link in the service; None if the service does not have the file."""
    path, hash_, anchor = href.partition("#")
    if "://" in href or not path:
        return href
    path = normpath(path)
    if path.removesuffix(".md") in pages:
        return f"{root}manual/{path.removesuffix('.md')}{hash_}{anchor}"
    return f"{root}manual" if path == "../README.md" else None


def _meant(code: str, name: str, root: str) -> str | None:
    """Return the page about what a piece of code names."""
    if name in NAMING and code in REGISTRY:
        return f"{root or './'}#/losses/{code}"
    if (problem := _PROBLEM.fullmatch(code)) and problem[1] in PROBLEMS:
        return f"{root}problems/{problem[1]}"
    return None
