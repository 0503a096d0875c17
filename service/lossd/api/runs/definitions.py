"""The definitions of the runs that batches arrive for, cached in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossd.caches import Cache, memoized
from lossd.runs.definition import RunDocument
from lossd_client.errors import Conflict, DefinitionChanged, Problem, RunSealed
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.recorder.client import Recorder

__all__ = ["Definition", "Definitions", "current_document", "problem_of", "readable_document"]

CACHED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition by which the batches of a run are evaluated.

    Attributes:
        run: The run's id.
        digest: The definition's digest.
        content_hash: The hash function by which the run tells batches apart.
        document: The checked definition.
    """

    run: str
    digest: str
    content_hash: str
    document: RunDocument

    @property
    def key(self) -> tuple[str, str]:
        """What the report of a batch depends on: runs with the same one count the same reports."""
        return self.digest, self.content_hash


class Definitions:
    """The definitions of runs, by owner and name. The most recently used are cached.

    Args:
        recorder: Knows all runs.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._cache: Cache[tuple[str, str], Definition] = Cache("run_definitions", CACHED_BYTES)

    def cached(self, owner: str, name: str) -> Definition | None:
        """Return the cached definition of a run; None without one."""
        return self._cache.get((owner, name))

    def forget(self, owner: str, name: str) -> None:
        """Drop the cached definition of a deleted run."""
        self._cache.drop((owner, name))

    async def look_up(self, owner: str, name: str, deadline: float) -> Definition:
        """Return the definition of an owner's run as it is now, and cache it.

        Raises:
            UnknownRun: The owner has no run of that name.
            DefinitionChanged: This version of lossd defines a metric of the run differently.
            RunSealed: The same, of a sealed run.
        """
        record, _ = await self._recorder.ask("find", deadline, owner=owner, name=name, owner_of_run=owner)
        document = current_document(record)
        found = Definition(record["id"], record["digest"], record["content_hash"], document)
        self._cache.put((owner, name), found, 4096 + 16 * len(str(record["document"])))
        return found


@memoized("run_documents", lambda text, document: 4096 + 16 * len(text), CACHED_BYTES)
def _document(text: bytes) -> RunDocument:
    """Return the checked definition of a run's document: one answer needs it several times, and checking takes 0.3 ms.

    Raises:
        Problem: This version of lossd does not accept it.
    """
    return RunDocument.stored(json.loads(text))


def problem_of(record: Mapping[str, Any]) -> str | None:
    """Return why an open run counts nothing more and has no result; None if it does."""
    try:
        current_document(record)
    except Conflict as problem:
        return problem.detail
    return None


def current_document(record: Mapping[str, Any]) -> RunDocument:
    """Return the checked definition in a run's record.

    Raises:
        RunSealed, DefinitionChanged: This version of lossd defines a metric of the run differently.
    """
    try:
        document = _document(json.dumps(record["document"]))
    except Problem:  # it was accepted by another version
        document = None
    if document is not None and document.digest == record["digest"]:
        return document
    name = quoted(record["name"])
    if record["status"] == "sealed":
        raise RunSealed(f"the run {name} is sealed; it counts nothing more")
    raise DefinitionChanged(
        f"the definition of a metric of the run {name} has changed since the run was created by another version of "
        "lossd; the run counts nothing more; create another run and send the batches again"
    )


def readable_document(record: Mapping[str, Any]) -> RunDocument:
    """Return the checked definition of a run whose state is to be read.

    Raises:
        DefinitionChanged: This version of lossd defines a metric of the run differently.
    """
    try:
        return current_document(record)
    except RunSealed:
        raise DefinitionChanged(
            f"the definition of a metric of the run {quoted(record['name'])} has changed since the run was sealed; its "
            "final result can be read as it is, and nothing else be computed; count the rows in another run"
        ) from None
