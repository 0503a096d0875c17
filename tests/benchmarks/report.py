"""What was measured: tables for the terminal, and a file that keeps the last measurement of each kind."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import load
from benchmarks.comparison import OURS, Cell, median, ratios
from benchmarks.environments import ROOT, python_of, versions
from benchmarks.goals import Verdict
from benchmarks.targets import TARGETS

VERSIONED = ("torch", "numpy", "mosec", "fastapi", "uvicorn", "nvidia-pytriton", "litserve", "lossd")

CELL_HEADINGS = ("", "", "requests/s", "lowest – highest", "lossd ×", "p50 ms", "p99 ms", "CPU ms", "MB", "failed")


# On the terminal


def of_cell(cell: Cell, headings: bool = True) -> Table:
    """Medians of each target, the fastest first, and how many times as fast lossd is."""
    table = Table(box=None, padding=(0, 1), show_header=headings)
    for heading, width in zip(CELL_HEADINGS, (8, 12, 10, 19, 7, 9, 9, 8, 7, 6), strict=True):
        table.add_column(heading, justify="right" if heading else "left", min_width=width, no_wrap=True)
    for row in cell_rows(cell):
        table.add_row(*row, style="bold" if row[1] == OURS else "")
    return table


def cell_rows(cell: Cell) -> list[tuple[str, ...]]:
    rows = []
    for name in sorted(cell["rounds"], key=lambda name: -median(cell, name)):
        rates = [taken["per_second"] for taken in cell["rounds"][name]]
        rows.append(
            (
                f"{cell['workload']} c={cell['connections']}",
                name,
                figure(statistics.median(rates)),
                f"{figure(min(rates))} – {figure(max(rates))}",
                "" if name == OURS else f"{statistics.median(ratios(cell, name)):.2f}",
                *(figure(median(cell, name, each)) for each in ("p50_ms", "p99_ms", "cpu_ms")),
                f"{max(taken['memory_mb'] for taken in cell['rounds'][name]):,.0f}",
                f"{sum(taken['failures'] for taken in cell['rounds'][name]):,.0f}",
            )
        )
    return rows


def of_rows(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*(each if isinstance(each, str) else figure(each) for each in row))
    return table


def of_verdicts(verdicts: Iterable[Verdict]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in VERDICT_HEADINGS:
        table.add_column(heading, justify="left" if heading in ("", "Verdict") else "right")
    for verdict in verdicts:
        style = "red" if not verdict.met else "green" if verdict.exceeded else ""
        table.add_row(*verdict_row(verdict), style=style)
    return table


VERDICT_HEADINGS = ("", "Measured", "Required", "Better still", "Verdict")


def verdict_row(verdict: Verdict) -> tuple[str, ...]:
    bound = "at most" if verdict.at_most else "at least"
    found, required = (f"{each:.3g}{verdict.unit}" for each in (verdict.found, verdict.required))
    beyond = "" if verdict.beyond is None else f"{verdict.beyond:.3g}{verdict.unit}"
    word = "missed" if not verdict.met else "better still" if verdict.exceeded else "met"
    return (verdict.what, found, f"{bound} {required}", beyond, word)


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


# In a file


def about(rounds: int, seconds: float) -> dict[str, Any]:
    """When, where and how."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(),
        "generator": "wrk" if load.have_wrk() else "Python sockets",
        "rounds": rounds,
        "seconds": seconds,
    }


def machine() -> str:
    """Processor, cores, memory, system, Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = models[0] if models else platform.machine()
    cores = len(os.sched_getaffinity(0))
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{processor}, {cores} cores, {memory_gb:.0f} GB, {system}"


def commit() -> str:
    """Of the working tree, with a plus where it has been changed since; empty outside of a repository."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return run.stdout.strip()


def versions_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the targets are made of."""
    return {name: versions(python_of(TARGETS[name].environment), VERSIONED) for name in names}


def keep(path: Path, part: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a part of the file; the whole of it is returned."""
    parts = read(path) | {part: found}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(parts, indent=1) + "\n")
    return parts


def read(path: Path) -> dict[str, Any]:
    """The parts measured so far."""
    parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return parts


def as_json(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) for verdict in verdicts]
