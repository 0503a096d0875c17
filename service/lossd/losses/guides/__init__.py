"""A guide to each loss: when to use it, when not, its symbols, and the common mistake.

The texts of a family of losses are in one file, ``FAMILY.toml``, a table for each loss.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter

from lossd.losses.registry import Loss

__all__ = ["Guide", "guide"]

Text = Annotated[str, StringConstraints(min_length=10, pattern=r"[.!?]$")]
"""Sentences; names of losses, inputs and parameters are in backquotes."""


class Guide(BaseModel):
    """A guide to a loss: the idea, when to use it, when not, and the common mistake.

    ``symbols`` explains each symbol of the formula. Its keys are the symbols in plain text, such as ``p_t`` or ``γ``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    idea: Text
    use: Text
    avoid: Text
    mistake: Text
    symbols: dict[str, str]


_FAMILY: TypeAdapter[dict[str, Guide]] = TypeAdapter(dict[str, Guide])


def guide(loss: Loss) -> Guide:
    """Return the guide to a loss."""
    return _family(loss.function.__module__.rpartition(".")[2])[loss.name]


@cache
def _family(name: str) -> Mapping[str, Guide]:
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return _FAMILY.validate_python(tomllib.loads(text))
