"""The strata of a run: all of its rows, those of each declared slice value, and those of each declared crossing."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["check_strata", "crossed_of", "groups_of", "slices_of", "strata_of"]

MOST_STRATA = 1000
"""The most values of all slices and crossings together."""

MOST_SHOWN = 10
"""The most faults in an error, and the most names in a fault: a definition may have thousands of either."""

MOST_LETTERS = 64
"""The most letters of a slice's name."""


def groups_of(definition: Mapping[str, Any]) -> int:
    """Return the number of groups that rows are counted in; 0 for none. Definitions of before have none."""
    groups: int = definition.get("groups", 0)
    return groups


def slices_of(definition: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return the declared values of each slice, by the slice's name."""
    slices: Mapping[str, Sequence[str]] = definition.get("slices", {})
    return slices


def crossed_of(definition: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Return the names of the slices of each crossing."""
    crossed: Sequence[Sequence[str]] = definition.get("crossed", ())
    return crossed


def strata_of(definition: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the strata of a definition, each as the slice values that its rows have.

    The first is ``{}``, all rows. Then come the slices in the order of their names, each value in the declared order.
    Then come the crossings in the declared order, each with all combinations of values, the last name's fastest.
    """
    slices = slices_of(definition)
    strata: list[dict[str, str]] = [{}]
    for names in [*([name] for name in sorted(slices)), *crossed_of(definition)]:
        strata += [
            dict(zip(names, values, strict=True)) for values in itertools.product(*(slices[name] for name in names))
        ]
    return strata


def check_strata(slices: Mapping[str, Sequence[str]], crossed: Sequence[Sequence[str]]) -> None:
    """Check the declared slices and crossings.

    Raises:
        InvalidRequest: A value stands twice, a crossing names no slice or one twice, or there are too many values.
    """
    faults: list[Fault] = []
    for name, values in slices.items():
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            faults.append(Fault(pointer=f"/slices/{name}", detail=f"the slice {name} has {quoted(twice[0])} twice"))
    sizes = [len(values) for values in slices.values()]
    seen: set[frozenset[str]] = set()
    for position, names in enumerate(crossed):
        pointer = f"/crossed/{position}"
        if unknown := [name for name in names if name not in slices]:
            known = _listed([*slices])
            detail = f"crossed names {quoted(unknown[0])}, which is not a slice; the slices are {known}"
            faults.append(Fault(pointer=pointer, detail=detail))
        elif len(set(names)) < max(2, len(names)):
            detail = f"a crossing has two different slices or more; this one has {_listed(names)}"
            faults.append(Fault(pointer=pointer, detail=detail))
        elif frozenset(names) in seen:
            faults.append(Fault(pointer=pointer, detail=f"the slices {_listed(names)} are crossed twice"))
        else:
            seen.add(frozenset(names))
            sizes.append(math.prod(len(slices[name]) for name in names))
    if sum(sizes) > MOST_STRATA:
        detail = (
            f"the slices and crossings have {sum(sizes)} values together; at most {MOST_STRATA} are counted: declare "
            "fewer values, or leave out a crossing"
        )
        faults.append(Fault(pointer="/slices", detail=detail))
    if faults:
        shown = faults[:MOST_SHOWN]
        more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
        raise InvalidRequest("; ".join(fault["detail"] for fault in shown) + more, errors=shown)


def _listed(names: Sequence[str]) -> str:
    """Return the first names, for an error."""
    shown = [name if len(name) <= MOST_LETTERS else quoted(name) for name in names[:MOST_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(names) > MOST_SHOWN else [])]) or "none"
