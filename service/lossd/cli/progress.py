"""What a long command shows while it runs, and where Ctrl-C may stop it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["load_torch", "progress", "uninterrupted"]

REDRAWN_PER_S = 5

ROOM_FOR_A_BAR = 72
"""The width from which the numbers beside a bar stay whole."""


@contextmanager
def progress(total: int, *, shown: bool) -> Iterator[Callable[[int, str, str], None]]:
    """Show a progress bar on standard error if it is a terminal.

    Args:
        total: The number of steps.
        shown: Whether to show it.

    Yields:
        A function of the steps that were done since its last call, the text after the bar, and an error after that.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        *([BarColumn()] if console.width >= ROOM_FOR_A_BAR else []),
        TextColumn("{task.fields[text]}", markup=False),
        TextColumn("{task.fields[error]}", style="red", markup=False),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=REDRAWN_PER_S,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=total, text="", error="")
        try:
            yield lambda steps, text, error: bar.update(task, advance=steps, text=text, error=error)
        finally:
            bar.live.transient = not bar.tasks[0].completed  # a bar that never moved is erased


def load_torch() -> None:
    """Import torch, which takes seconds on a busy machine; a spinner on standard error shows it on a terminal."""
    if "torch" in sys.modules:
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("loading torch"):
            import torch  # noqa: F401


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the block ends."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if signals:
        raise KeyboardInterrupt
