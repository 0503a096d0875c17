"""The search in the catalogue: losses and metrics by their names, by other libraries' names, and by words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from lossd.losses import REGISTRY
from lossd.losses.guides import guide
from lossd.losses.lookup import closest_losses
from lossd.losses.names import METRICS as METRIC_NAMES
from lossd.losses.names import SYNONYMS, folded, meaning, other_names
from lossd.losses.registry import Loss
from lossd.metrics import METRICS

__all__ = ["MAX_CHARACTERS", "SearchResult", "search"]

MAX_CHARACTERS = 200
"""The longest query."""

NAME, OTHER_NAME, PREFIX, OTHER_PREFIX, WORDS_OF_NAME, WORDS = range(6)
"""The ways in which a query fits, the best first."""

LEAST_PREFIX = 3
"""The shortest query that is the beginning of a metric's name."""

_OTHER_LOSSES, _OTHER_METRICS = other_names(SYNONYMS), other_names(METRIC_NAMES)


class SearchResult(NamedTuple):
    """What a query finds, the best first.

    Attributes:
        losses: The losses.
        metrics: The names of metrics.
        note: What other libraries mean by the query if no loss here gives the same numbers; else empty.
    """

    losses: list[Loss]
    metrics: list[str]
    note: str


def search(query: str) -> SearchResult:
    """Return the losses and metrics that a query finds.

    A query is a name, however it is spelled, the beginning of one, or words that a loss's documentation has. A name
    that other libraries use finds what it means here. A misspelt name finds the nearest ones.

    Args:
        query: Up to ``MAX_CHARACTERS`` characters.
    """
    meant = meaning(query)
    if not meant.here:
        return SearchResult([], [], meant.note)
    keys, mentioned = meant.keys, _mentioned(meant.note)
    ranks: dict[str, tuple[int, int]] = {}
    for name in REGISTRY:
        rank = _rank(name, keys, meant.loss, _OTHER_LOSSES)
        if name in mentioned:
            ranks[name] = OTHER_NAME, mentioned.index(name)
        elif rank is not None or (rank := _rank_of_words(name, query)) is not None:
            ranks[name] = rank, 0
    losses = sorted(ranks, key=lambda name: ranks[name])  # stable: in the registry's order
    of_metrics = {
        name: rank
        for name in dict.fromkeys(name for of_task in METRICS.values() for name in of_task)
        if (rank := _rank(name, keys, meant.metric, _OTHER_METRICS)) is not None
        and (rank < PREFIX or len(keys[0]) >= LEAST_PREFIX)
    }
    if not losses and not of_metrics and keys:
        losses = closest_losses(query)
    return SearchResult(
        [REGISTRY[name] for name in losses], sorted(of_metrics, key=lambda n: of_metrics[n]), meant.note
    )


def _rank(name: str, keys: list[str], meant: str | None, others: Mapping[str, list[str]]) -> int | None:
    """Return how well a name, or one that others have for it, fits the folded names that a query may mean."""
    whole_name = folded(name)
    if whole_name in keys:
        return NAME
    if name == meant:
        return OTHER_NAME
    if keys and whole_name.startswith(keys[0]):
        return PREFIX
    if keys and any(other.startswith(keys[0]) for other in others.get(name, ())):
        return OTHER_PREFIX
    return None


def _rank_of_words(name: str, query: str) -> int | None:
    words = [word for word in re.split(r"[\s_]+", query.lower()) if word]
    if all(word in name for word in words):
        return WORDS_OF_NAME
    return WORDS if all(word in _texts()[name] for word in words) else None


def _mentioned(note: str) -> list[str]:
    """Return the losses that a note mentions."""
    return [word for word in re.findall(r"[a-z][a-z0-9_]+", note) if word in REGISTRY]


@cache
def _texts() -> Mapping[str, str]:
    """Return what each loss's page says, in lower case."""
    return {loss.name: " ".join(_texts_of(loss)).lower() for loss in REGISTRY.values()}


def _texts_of(loss: Loss) -> list[str]:
    texts = guide(loss)
    return [
        *(loss.name, loss.task, loss.documentation, *(parameter.name for parameter in loss.parameters)),
        *(texts.idea, texts.use),  # and not what it is not for
    ]
