"""The frame of pages that are text: the explorer's bar and style, a column of links, and the text."""

from __future__ import annotations

from html import escape

__all__ = ["frame"]

MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><path d="M4 6c4 0 5 19 12 19S24 6 28 6"/>'
    '<circle cx="16" cy="25" r="2.6"/></svg>'
)

LINKS = {"Manual": "manual", "API docs": "docs", "Error codes": "problems"}


def frame(title: str, text: str, *, root: str, assets: str, aside: str, here: str = "") -> bytes:
    """Return a page.

    Args:
        title: The page's title.
        text: Its HTML.
        root: The relative address of the service's root, from the page: empty, or ``../``.
        assets: The folder of the explorer's files, from the root.
        aside: The HTML of the column beside the text.
        here: The HTML of the list of the page's headings.
    """
    files, home = f"{root}{assets}", root or "./"
    contents = f'<nav class="here" aria-label="On this page">{here}</nav>' if here else ""
    links = "".join(f'<a href="{root}{path}">{name}</a>' for name, path in LINKS.items())
    return f"""<!doctype html>
<html lang="en" data-theme="light" data-root="{home}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · lossd</title>
<link rel="icon" href="{files}/icon.svg" type="image/svg+xml">
<script src="{files}/early.js"></script>
<link rel="stylesheet" href="{files}/app.css">
<link rel="stylesheet" href="{files}/manual/manual.css">
<script type="module" src="{files}/manual/manual.js"></script>
</head>
<body>
<a class="skip" href="#view">Skip to the content</a>
<header class="bar">
<a class="brand" href="{home}" aria-label="lossd, the explorer">{MARK}<span>lossd</span></a>
<nav id="nav" aria-label="Views"></nav>
<div class="tools">
<nav class="docs" aria-label="Documentation">{links}</nav>
<button class="round" id="theme" type="button" hidden></button>
</div>
</header>
<div class="manual">
<aside>{aside}</aside>
<main id="view" tabindex="-1">{text}</main>
{contents}
</div>
<footer>{links}<a href="{root}redoc">API docs on one page</a></footer>
<div id="announcer" class="unseen" role="status" aria-live="polite"></div>
</body>
</html>
""".encode()
