"""Functions that processes evaluate chunks with, and that end them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, cast

from lossd.scoring.chunks import Chunk
from lossd.scoring.work import ChunkResult, Scorer

__all__ = ["CutOff", "Dying"]


@dataclass(frozen=True)
class Dying:
    """Scores chunks, and notes each in a folder. The process that has one of some chunks is killed at its first tries.

    Attributes:
        scorer: Scores a chunk.
        folder: Gets an empty file for each try.
        ids: The chunks that kill their process.
        times: How often.
    """

    scorer: Scorer
    folder: Path
    ids: frozenset[str]
    times: int

    def __call__(self, chunk: Chunk) -> ChunkResult:
        before = len([*self.folder.glob(f"{chunk.id}.*")])
        (self.folder / f"{chunk.id}.{before}").touch()
        if chunk.id in self.ids and before < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.scorer(chunk)


@dataclass(frozen=True)
class CutOff:
    """Ends its process while it sends the outcome of a chunk."""

    def __call__(self, chunk: Chunk) -> ChunkResult:
        def send(connection: Connection, data: bytes) -> NoReturn:
            os.write(connection.fileno(), data[:10])
            os._exit(0)

        setattr(Connection, "_send", send)  # noqa: B010  (mypy: it is a method)
        return cast("ChunkResult", bytes(1000))
