"""A progress bar with rate and time left: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Self, TextIO

__all__ = ["Progress"]

WIDTH = 24
REDRAW_S = 0.1


class Progress:
    """A progress bar on standard error, redrawn in place; the last state stays visible.

    Args:
        total: How many steps there will be; None if unknown.
        unit: The name of a step, in the plural.
        shown: Whether to draw; the default is only if ``stream`` is a terminal.
        stream: The stream to draw on; the default is standard error.
    """

    def __init__(
        self, total: int | None, unit: str, *, shown: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self.total = total
        self.unit = unit
        self.done = 0
        self._skipped = 0
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty() if shown is None else shown
        self._begin = self._drawn = time.monotonic()
        self._length = 0

    def advance(self, note: str = "", *, skipped: bool = False) -> None:
        """Count one more step.

        Args:
            note: The text after the rate.
            skipped: Whether the step took no work, so that the rate does not count it.
        """
        self.done += 1
        self._skipped += skipped
        self._note = note
        if time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self.done:
            self._draw()
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if not self._shown:
            return
        seconds = max(self._drawn - self._begin, 1e-9)
        per_s = (self.done - self._skipped) / seconds
        rate = f"{per_s:.1f} {self.unit}/s"
        if self.total:
            if self.done < self.total and per_s:
                rate += f"  {_clock((self.total - self.done) / per_s)} left"
            filled = WIDTH * min(self.done, self.total) // self.total
            line = f"{'█' * filled}{'░' * (WIDTH - filled)} {self.done}/{self.total} {self.unit}  {rate}"
        else:
            line = f"{self.done} {self.unit}  {rate}"
        line = f"{line}  {self._note}".rstrip()
        self._stream.write(f"\r{line.ljust(self._length)}")
        self._stream.flush()
        self._length = len(line)


def _clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
