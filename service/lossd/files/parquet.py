"""The columns of a Parquet table as arrays. It needs pyarrow, which lossd does not install."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO, Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet

from lossd.files.array_reader import Array, ArrayReader, Unreadable
from lossd_client.errors import DtypeMismatch
from lossd_client.wire import DTYPES
from lossd_client.wire.quoting import quoted

__all__ = ["columns"]

BATCH_ROWS = 8192


def columns(file: IO[bytes], begin: int) -> dict[str, ArrayReader]:
    """Return a table's columns by name: (rows,) of numbers, (rows, n) of lists of n numbers, and so on.

    Args:
        file: The table.
        begin: The first row to read. Reading starts with its row group.
    """
    try:
        table = arrow.parquet.ParquetFile(file)
        return {field.name: _column(table, field, begin) for field in table.schema_arrow}
    except (arrow.ArrowException, OSError) as error:
        raise Unreadable(
            f"it is a Parquet table that is damaged ({str(error).strip()}); write it again, with pandas say"
        ) from None


def _column(table: Any, field: Any, begin: int) -> ArrayReader:
    name, groups = field.name, range(table.num_row_groups)
    ends = [*accumulate(table.metadata.row_group(group).num_rows for group in groups)]
    first = bisect_right(ends, begin)
    arrays = _arrays(table, name, groups[first:])
    empty = _array(arrow.array([], field.type), name)
    ahead: Array = next(arrays, empty)
    shape = (table.metadata.num_rows, *ahead.shape[1:])

    def read(rows: int) -> Array:
        nonlocal ahead
        parts, missing = [], rows
        while missing > len(ahead):
            parts.append(ahead)
            missing -= len(ahead)
            following = next(arrays, None)
            if following is None or following.shape[1:] != shape[1:]:
                raise Unreadable(f"the lists of column {quoted(name)} differ in length, or it ends early")
            ahead = following
        parts.append(ahead[:missing])
        ahead = ahead[missing:]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    read(begin - (ends[first - 1] if first else 0))
    return ArrayReader(shape, ahead.itemsize, read, ends=ends)


def _arrays(table: Any, name: str, groups: Sequence[int]) -> Iterator[Array]:
    """Yield a column of some row groups in pieces."""
    if groups:
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[*groups], columns=[name]):
            yield _array(batch.column(0), name)


def _array(values: Any, name: str) -> Array:
    if values.null_count:
        raise Unreadable(f"column {quoted(name)} has {values.null_count} missing values; fill or drop them")
    types = arrow.types
    if types.is_dictionary(values.type):
        return _array(values.dictionary_decode(), name)
    if types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        inner = _array(values.flatten(), name)
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise Unreadable(f"the lists of column {quoted(name)} differ in length; an array has rows of one length")
        return inner.reshape(len(values), *lengths.tolist(), *inner.shape[1:])
    if str(values.type).replace("double", "float64") not in ("float", "halffloat", *DTYPES):
        raise DtypeMismatch(f"column {quoted(name)} is of {values.type}")
    array: Array = values.to_numpy(zero_copy_only=False)
    return array
