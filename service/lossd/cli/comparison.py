"""Tables of comparisons, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossd_client.comparisons import interval_digits

if TYPE_CHECKING:
    from lossd.cli.gates import GateResult
    from lossd_client import Comparison, Difference

__all__ = ["comparison"]

WORDS = {"b": ("better", "green"), "a": ("worse", "red"), "undecided": ("undecided", "yellow"), None: ("–", "dim")}


def comparison(found: Comparison, outcomes: Sequence[GateResult]) -> RenderableType:
    """Return a comparison as tables: all rows, then each slice, then the verdict and the gates.

    Args:
        found: The comparison.
        outcomes: What became of the gates.
    """
    how = "paired" if found.paired else "unpaired"
    parts: list[RenderableType] = [
        Text(f"{found.run} against {found.baseline}", style="bold"),
        Text(f"{found.rows:,} rows, {how}, {100 * found.level:.6g} % intervals", style="dim"),
        Padding(_table(found, found.metrics), (1, 0), expand=False),
    ]
    for each in found.slices:
        name = ", ".join(f"{name}={value}" for name, value in each.slice.items())
        parts.append(Text(f"{name}, {each.rows:,} rows", style="bold"))
        if each.metrics:
            parts.append(_table(found, each.metrics))
        parts.append("")
    parts.append(Text(found.sentence, no_wrap=True, overflow="ignore"))
    parts += [Text(f"{warning.code}: {warning.detail}", style="yellow") for warning in found.warnings]
    parts += [Text(str(outcome), style="green" if outcome.proven else "red") for outcome in outcomes]
    return Group(*parts)


def _table(found: Comparison, metrics: Mapping[str, Difference]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("metric", style="dim", no_wrap=True)
    for heading in (found.baseline, found.run, "difference", "interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, each in metrics.items():
        word, style = WORDS[each.verdict]
        table.add_row(name, _number(each.baseline), _number(each.value), *_figures(each), Text(word, style=style))
    return table


def _figures(each: Difference) -> tuple[str, str, str]:
    """Return the difference, its interval and its corrected p, with the digits that the interval's width allows."""
    if each.low is None or each.high is None:
        return "–" if each.difference is None else f"{each.difference:+.6g}", "–", "–"
    digits = interval_digits(each.low, each.high)
    difference = "–" if each.difference is None else f"{each.difference:+.{digits}f}"
    p = "–" if each.p_holm is None else "< 0.001" if each.p_holm < 0.001 else f"{each.p_holm:.2g}"
    return difference, f"{each.low:+.{digits}f} to {each.high:+.{digits}f}", p


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
