"""Checks that a batch states what its run's identity needs: a position, ids, or a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd_client.errors import Fault, InvalidRequest

__all__ = ["check_place"]

_NEEDED = {"position": "first", "id": "sample_id", "batch": "name"}
_POINTERS = {"first": "/first", "sample_id": "/inputs/sample_id", "name": "/name"}


def check_place(kind: str, given: Mapping[str, Any]) -> None:
    """Check that a batch says what its run's identity needs, and nothing that belongs to another identity.

    Args:
        kind: The identity: position, id or batch.
        given: ``first``, ``sample_id`` and ``name``, as far as they were sent; None stands for not sent.

    Raises:
        InvalidRequest: One is missing, or belongs to another identity.
    """
    for other, word in _NEEDED.items():
        if other != kind and given.get(word) is not None:
            raise _refused(word, f"{word} belongs to runs of identity {other}; this one has identity {kind}")
    word = _NEEDED[kind]
    if kind != "batch" and given.get(word) is None:
        raise _refused(word, f"a run of identity {kind} needs {word} with every batch")


def _refused(word: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(pointer=_POINTERS[word], detail=detail)])
