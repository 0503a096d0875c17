"""What a batch says about its rows beside their tensors: their place in the data set, their clusters, their slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.runs.rows import identity
from lossd.runs.rows.grouping import groups_from, groups_of_keys
from lossd.runs.rows.slots import Placement, in_groups, placed
from lossd.runs.rows.strata import groups_of, slices_of
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire import DTYPES
from lossd_client.wire.quoting import quoted

__all__ = [
    "CLUSTER_ID",
    "SAMPLE_ID",
    "check_integers",
    "check_place",
    "codes_of_batch",
    "groups_of_rows",
    "is_about_rows",
    "placement_of",
    "slice_input",
]

Array = npt.NDArray[Any]

SAMPLE_ID, CLUSTER_ID, SLICE = "sample_id", "cluster_id", "slice."

_NEEDED = {"position": "first", "id": SAMPLE_ID, "batch": "name"}
_POINTERS = {"first": "/first", SAMPLE_ID: identity.IDS, "name": "/name"}


def slice_input(name: str) -> str:
    """Return the name of the input that has the codes of a slice."""
    return f"{SLICE}{name}"


def is_about_rows(name: str) -> bool:
    """Return whether an input says something about rows beside what is evaluated: ids, clusters or slices."""
    return name in (SAMPLE_ID, CLUSTER_ID) or name.startswith(SLICE)


def check_place(kind: str, fields: Mapping[str, Any]) -> None:
    """Check that a batch says what its run's identity needs, and nothing that belongs to another identity.

    Args:
        kind: The identity: position, id or batch.
        fields: ``first``, ``sample_id`` and ``name``, as far as they were sent; None stands for not sent.

    Raises:
        InvalidRequest: One is missing, or belongs to another identity.
    """
    for other, word in _NEEDED.items():
        if other != kind and fields.get(word) is not None:
            raise _refused(f"{word} belongs to runs of identity {other}; this one has identity {kind}", _POINTERS[word])
    word = _NEEDED[kind]
    if kind != "batch" and fields.get(word) is None:
        raise _refused(f"a run of identity {kind} needs {word} with every batch", _POINTERS[word])


def check_integers(name: str, dtype: str, shape: Sequence[int], rows: int) -> None:
    """Check the dtype and the shape of an input about rows.

    Raises:
        InvalidRequest: It has other than one integer a row.
    """
    pointer = f"/inputs/{name}"
    if DTYPES[dtype].kind != "integer" or dtype == "bool":
        what = {SAMPLE_ID: "ids", CLUSTER_ID: "the numbers of clusters"}.get(name, "codes of slices")
        raise _refused(f"{name} is {dtype}; {what} are integers", pointer)
    if tuple(shape) != (rows,):
        raise _refused(f"{name} has shape {tuple(shape)}, the batch has {rows} rows", pointer)


def codes_of_batch(
    definition: Mapping[str, Any], values: Mapping[str, str | None] | None, inputs: Sequence[str]
) -> dict[str, int]:
    """Return the code of each slice that has one value for the whole batch, in the order of the names.

    Args:
        definition: The run's definition.
        values: The batch's value of slices by name; None for a batch whose rows have none.
        inputs: The names of the batch's inputs, which say the values of the other slices row by row.

    Raises:
        InvalidRequest: A slice is said twice or not at all, or it or its value is not declared.
    """
    declared, values = slices_of(definition), values or {}
    known = ", ".join(sorted(declared)) or "none"
    remedy = f"the run's slices are {known}"
    for name in values:
        if name not in declared:
            raise _refused(f"slices names {quoted(name)}, which is not a slice of the run; {remedy}", f"/slices/{name}")
    for name in inputs:
        if name.startswith(SLICE) and name.removeprefix(SLICE) not in declared:
            raise _refused(f"the input {quoted(name)} is of no slice of the run; {remedy}", f"/inputs/{name}")
    codes = {}
    for name in sorted(declared):
        if name in values and slice_input(name) in inputs:
            detail = f"the slice {name} is said twice, by slices and by the input {slice_input(name)}; send one of them"
            raise _refused(detail, f"/slices/{name}")
        if name in values:
            codes[name] = _code(name, values[name], declared[name])
        elif slice_input(name) not in inputs:
            detail = (
                f'the batch does not say the slice {name} of its rows: send "slices": {{"{name}": value}} for all of '
                f"them, null for none, or the input {slice_input(name)} with a code a row"
            )
            raise _refused(detail, "/slices")
    return codes


def _code(name: str, value: str | None, values: Sequence[str]) -> int:
    if value is None:
        return -1
    if value not in values:
        shown = ", ".join(map(quoted, values[:10])) + (", ..." if len(values) > 10 else "")
        raise _refused(f"{quoted(value)} is not a value of the slice {name}; its values are {shown}", f"/slices/{name}")
    return values.index(value)


def groups_of_rows(
    definition: Mapping[str, Any],
    lengths: Sequence[int],
    firsts: Sequence[int] | None,
    inputs: Mapping[str, Array],
    kernels: CountingKernels = NO_KERNELS,
    *,
    apart: bool = False,
) -> Array | None:
    """Return the group of each row, (R,) int64; None without groups.

    Args:
        definition: The run's definition.
        lengths: The rows of each batch.
        firsts: The key of the first row of each batch; None if rows have ids.
        inputs: The inputs about rows, of all batches one after the other.
        kernels: The compiled functions, by name; those at hand.
        apart: Whether the groups of all batches are numbered one after the other.
    """
    if not (groups := groups_of(definition)):
        return None
    keys = inputs.get(CLUSTER_ID, inputs.get(SAMPLE_ID))
    if keys is None:
        assert firsts is not None
        return groups_from(firsts, lengths, groups, kernels, apart=apart)
    return groups_of_keys(keys.ravel(), groups, kernels, lengths if apart else None)


def placement_of(
    definition: Mapping[str, Any],
    lengths: Sequence[int],
    firsts: Sequence[int] | None,
    inputs: Mapping[str, Array],
    codes: Mapping[str, Sequence[int]],
    kernels: CountingKernels = NO_KERNELS,
) -> Placement:
    """Return where the rows of batches are counted.

    Args:
        definition: The run's definition.
        lengths: The rows of each batch.
        firsts: The key of the first row of each batch; None if rows have ids.
        inputs: The inputs about rows, of all batches one after the other.
        codes: For each slice that has one value for a batch: the code of each batch's.
        kernels: The compiled functions, by name; those at hand.

    Raises:
        InvalidRequest: A code is out of range.
    """
    if "slices" not in definition:
        groups = groups_of_rows(definition, lengths, firsts, inputs, kernels, apart=True)
        return in_groups(definition, lengths, groups, kernels)
    by_row: dict[str, Array] = {}
    for name, values in slices_of(definition).items():
        if name in codes:
            by_row[name] = np.repeat(np.array(codes[name], np.int64), lengths)
            continue
        sent = inputs[slice_input(name)].ravel()
        if sent.size and (int(sent.min()) < -1 or int(sent.max()) >= len(values)):
            wrong = int(np.flatnonzero((sent < -1) | (sent >= len(values)))[0])
            detail = (
                f"{slice_input(name)} has the code {int(sent[wrong])}; the slice has {len(values)} values, so codes "
                f"are 0 to {len(values) - 1}, and -1 for none"
            )
            raise _refused(detail, f"/inputs/{slice_input(name)}")
        by_row[name] = sent.astype(np.int64)
    return placed(definition, lengths, groups_of_rows(definition, lengths, firsts, inputs, kernels), by_row)


def _refused(detail: str, pointer: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(pointer=pointer, detail=detail)])
