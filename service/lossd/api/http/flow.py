"""Uvicorn's flow control, with one more reason to pause reading."""

from __future__ import annotations

from lossd.api.http.uvicorn_internals import FlowControl

__all__ = ["PausableFlow"]


class PausableFlow(FlowControl):
    """Flow control that does not resume reading while ``full``, even if a request waits for its body.

    Attributes:
        full: Whether a request waits behind the one that is answered.
    """

    full = False

    def resume_reading(self) -> None:
        """Resume reading, unless ``full``."""
        if self.read_paused and not self.full:
            self.read_paused = False
            self._transport.resume_reading()
