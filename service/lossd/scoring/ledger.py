"""A file of the finished chunks: a line of JSON for each, so that an interrupted score continues.

The first line says what is computed. Each further line is written at once and synced, and holds the states of a chunk.
A line that is cut off, because the machine stopped, is dropped. Chunks with bad files are not kept: the files may be
mended.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lossd.runs import encoding
from lossd.runs.differences import differing
from lossd.scoring.work import ChunkResult, Part

__all__ = ["Ledger", "Refused"]

FORMAT = 1
BEGINNING = b'{"ledger":'


class Refused(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Why a ledger cannot be used."""


class Ledger:
    """The finished chunks of one score.

    Args:
        path: The file, which is made if it is not there.
        definition: The state of the run without rows, as bytes.
        about: What else decides the numbers, as JSON values.

    Raises:
        Refused: It is no ledger, it is damaged or in use, or it is of another score.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, definition: bytes, about: Mapping[str, Any]) -> None:
        self._path = path
        self._lines: dict[str, tuple[int, int]] = {}
        described, _, _ = encoding.decode(definition)
        head = {"ledger": FORMAT, "digest": _digest(definition, about), "of": {**described["definition"], **about}}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            os.ftruncate(self._file, self._scan(head))
            if not os.fstat(self._file).st_size:
                self._append(head)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def finished(self, chunks: Container[str]) -> Iterator[ChunkResult]:
        """Yield the outcomes of chunks that it holds; one of files that were changed since is no longer of use.

        Args:
            chunks: The ids of the chunks of the files as they are now.
        """
        for number, (chunk, (begin, length)) in enumerate(self._lines.items(), 2):
            if chunk in chunks:
                yield self._outcome(number, os.pread(self._file, length, begin))

    def add(self, outcome: ChunkResult) -> None:
        """Keep the outcome of a chunk, unless a file in it is bad; it is on the disk when this returns."""
        if outcome.bad:
            return
        parts = [{"files": part.files, "rows": part.rows, "state": _text(part.state)} for part in outcome.parts]
        self._append({"chunk": outcome.chunk, "bytes": outcome.nbytes, "parts": parts})

    def _append(self, entry: Mapping[str, Any]) -> None:
        data = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{self._path} is in use by another process; wait for it, or begin another ledger") from None

    def _scan(self, head: Mapping[str, Any]) -> int:
        """Find the lines, whose states stay on the disk; return how many bytes the whole lines have."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if number == 1 and not line.startswith(BEGINNING[: len(line)]):
                        raise self._foreign()
                    break
                if number == 1:
                    self._check(line, head)
                else:
                    self._lines.setdefault(self._outcome(number, line).chunk, (end, len(line)))
                end += len(line)
        return end

    def _check(self, line: bytes, head: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line)
            form, digest, definition = found["ledger"], found["digest"], found["of"]
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None
        if form != FORMAT:
            raise Refused(f"{self._path} has format {form}; this lossd reads format {FORMAT}: begin another ledger")
        if digest != head["digest"]:
            places = ", ".join(differing(json.loads(json.dumps(head["of"])), definition)) or "/"
            raise Refused(
                f"{self._path} is of another score: {places} differ; give the same options and files as before, or "
                "begin another ledger"
            )

    def _outcome(self, number: int, line: bytes) -> ChunkResult:
        try:
            entry = json.loads(line)
            parts = [Part(tuple(part["files"]), part["rows"], _bytes(part["state"])) for part in entry["parts"]]
            return ChunkResult(entry["chunk"], tuple(parts), (), entry["bytes"])
        except (ValueError, KeyError, TypeError, zlib.error):
            raise Refused(
                f"line {number} of {self._path} is damaged; remove it, and its chunk is scored again"
            ) from None

    def _foreign(self) -> Refused:
        return Refused(f"{self._path} is not a ledger of lossd score; name a file that does not exist to begin one")


def _digest(definition: bytes, about: Mapping[str, Any]) -> str:
    return hashlib.sha256(definition + json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _text(state: bytes) -> str:
    return base64.b64encode(encoding.compressed(state)).decode()


def _bytes(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))
