"""The pages of measurements: tables are written between their markers, the text around them by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.checks import CHECKS
from benchmarks.comparison import Cell, median, peers, ratios
from benchmarks.environments import ROOT
from benchmarks.goals import Verdict, cpu_ratio
from benchmarks.report import VERDICT_HEADINGS, figure, verdict_row
from benchmarks.targets import TARGETS

PAGES = (ROOT / "docs/performance.md", ROOT / "docs/profile.md")
"""Results for users, and where the time goes for contributors; a table stands on either."""

Part = Mapping[str, Any]


def write(parts: Mapping[str, Part]) -> None:
    """Write what was measured into the pages; the rest of them is unchanged.

    Raises:
        ValueError: A measurement has its markers on no page.
    """
    texts = {page: page.read_text() for page in PAGES}
    if homeless := [name for name in SECTIONS if name in parts and not any(marker(name) in t for t in texts.values())]:
        raise ValueError(f"no page has the line {marker(homeless[0])}; add it and <!-- /measured -->")
    for page, text in texts.items():
        page.write_text(filled(text, parts))


def marker(name: str) -> str:
    """The line after which the table of a measurement stands."""
    return f"<!-- measured: {name} -->"


def filled(text: str, parts: Mapping[str, Part]) -> str:
    """The text with the tables that it has markers for, between them and ``<!-- /measured -->``."""
    for name, section in SECTIONS.items():
        part = parts.get(name)
        if part is None:
            continue
        before, begin, rest = text.partition(f"{marker(name)}\n")
        _, end, after = rest.partition("<!-- /measured -->")
        if begin and end:
            text = f"{before}{begin}{section(part)}\n{end}{after}"
    return text


def comparison(part: Part) -> str:
    """Requests a second and CPU time of a request by target, the goals, who was measured and who was not."""
    cells: Sequence[Cell] = part["cells"]
    names = [name for name in TARGETS if any(name in cell["rounds"] for cell in cells)]
    paragraphs = [
        provenance(part),
        table(
            ("", *names, "lossd over the best peer"),
            (
                (
                    f"{cell['workload']}, {cell['connections']} at a time",
                    *(figure(median(cell, name)) if name in cell["rounds"] else "" for name in names),
                    over_the_best(cell),
                )
                for cell in cells
            ),
        ),
        "CPU time of a request in ms, of all of a target's processes:",
        table(
            ("", *names, "the most thrifty peer's over lossd's"),
            (
                (
                    f"{cell['workload']}, {cell['connections']} at a time",
                    *(figure(median(cell, name, "cpu_ms")) if name in cell["rounds"] else "" for name in names),
                    thrift(cell),
                )
                for cell in cells
            ),
        ),
        goals(part),
        table(
            ("", "What it is", "Versions"),
            (
                (name, TARGETS[name].what, ", ".join(" ".join(each) for each in versions.items()))
                for name, versions in part["versions"].items()
            ),
            figures=False,
        ),
        absences(part),
    ]
    return "\n\n".join(filter(None, paragraphs))


def over_the_best(cell: Cell) -> str:
    """The ratio, and how far it varied from round to round."""
    others = peers(cell)
    if not others:
        return ""
    each = ratios(cell, others[0])
    return f"**{statistics.median(each):.2f}** ({each[0]:.2f} – {each[-1]:.2f}) over {others[0]}"


def thrift(cell: Cell) -> str:
    """How many times lossd's CPU time the peer takes that takes least."""
    others = peers(cell)
    if not others:
        return ""
    least = min(others, key=lambda name: median(cell, name, "cpu_ms"))
    return f"**{figure(cpu_ratio(cell, least))}** of {least}"


def finding(part: Part) -> str:
    """The table of a check, its verdicts, and who was not measured."""
    rows = ([each if isinstance(each, str) else figure(each) for each in row] for row in part["rows"])
    verdicts = goals(part) if part["verdicts"] else ""
    return "\n\n".join(filter(None, (provenance(part), table(part["headings"], rows), verdicts, absences(part))))


def absences(part: Part) -> str:
    """Who was not measured, and why."""
    return "\n".join(f"- Not measured: {who}: {why}" for who, why in part.get("absent", {}).items())


def goals(part: Part) -> str:
    return table(VERDICT_HEADINGS, (verdict_row(Verdict(**verdict)) for verdict in part["verdicts"]))


def provenance(part: Part) -> str:
    """When, where, how."""
    how = f"{part['rounds']} rounds of {part['seconds']:g} s, load by {part['generator']}"
    return f"{part['date']}, commit {part['commit'] or 'unknown'}; {part['machine']}; {how}."


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], figures: bool = True) -> str:
    """Markdown; the first column to the left, and figures to the right."""
    lines = [headings, ("---", *("---:" if figures else "---",) * (len(headings) - 1)), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


SECTIONS: dict[str, Callable[[Part], str]] = {"comparison": comparison, **dict.fromkeys((*CHECKS, "gpu"), finding)}
