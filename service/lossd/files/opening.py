"""Open the arrays in a file, and read each whole or a few rows at a time.

The first bytes decide a file's kind; for .csv and .safetensors, which have no signature, the name does. No more memory
is taken than the file's size accounts for, whatever its header claims.
"""

from __future__ import annotations

import csv
import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import IO

import numpy as np

import lossd.files.foreign as foreign
from lossd.files.array_reader import Array, ArrayReader, Unreadable
from lossd.files.places import Place, Remote
from lossd_client.errors import DtypeMismatch, MalformedBody, Problem
from lossd_client.wire import DTYPES, Tensor, safetensors
from lossd_client.wire.quoting import quoted

__all__ = ["NAMELESS", "SUFFIXES", "UnreadableFile", "opened", "printable_path"]

NPY, ZIP, PARQUET, PNG = b"\x93NUMPY", b"PK", b"PAR1", b"\x89PNG\r\n\x1a\n"
ENCRYPTED = 1
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError)
SUFFIXES = (".npy", ".npz", ".safetensors")
READ = ".npy, .npz, .safetensors, .csv, .png"
NAMELESS = ""
"""The name of an array in a file that does not name it."""


class UnreadableFile(MalformedBody):
    """A file is of another kind, damaged, or cannot be opened; or it does not say which input it holds."""

    title = "Unreadable file"


def opened(path: Place, stack: ExitStack, begin: int = 0) -> dict[str, ArrayReader]:
    """Return the arrays of a file by name, or one under :data:`NAMELESS`; ``stack`` closes the file.

    Args:
        path: The file.
        stack: Closes the file.
        begin: The first row to read of each array that has rows.

    Raises:
        UnreadableFile: The file is of another kind or damaged, or cannot be opened; reading a column raises this too.
        DtypeMismatch: No loss takes the dtype of an array.
    """
    with _file(path):
        columns = _opened(path, stack, begin)
    return {name: _within(partial(_file, path), column) for name, column in columns.items()}


@contextmanager
def _file(path: Place) -> Iterator[None]:
    """Turn errors of the block, which reads a file, into errors that name it."""
    named = printable_path(path)
    try:
        yield
        return
    except DtypeMismatch as error:
        raise DtypeMismatch(f"{error.detail} in {named}; convert it to one of {', '.join(DTYPES)}") from None
    except OSError as error:
        reason = error.strerror or str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except (Unreadable, Problem) as error:
        reason = str(error)
    except Exception as error:  # readers of a damaged archive raise many kinds of errors, as do file systems
        reason = f"it is damaged ({type(error).__name__})"
        if isinstance(path, Remote):
            reason = f"it is damaged, or its file system fails ({type(error).__name__}: {error})"
    raise UnreadableFile(f"{named} cannot be read: {reason}")


def _within(context: Callable[[], AbstractContextManager[None]], column: ArrayReader) -> ArrayReader:
    """Return the column that is read within a context."""

    def read(rows: int) -> Array:
        with context():
            return column.take(rows)

    return ArrayReader(column.shape, column.itemsize, read, seeks=column.seeks, ends=column.ends)


def _started(path: Place, stack: ExitStack) -> tuple[IO[bytes], int]:
    """Return a file, open for reading, and its size."""
    if isinstance(path, Remote):
        return stack.enter_context(path.open()), path.size
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
        if stat.S_ISDIR(mode):
            raise Unreadable("it is a directory; --batch evaluates the files in one")
        raise Unreadable("it is a pipe or a device; write the array into a file")
    return stack.enter_context(path.open("rb")), path.stat().st_size


def _opened(path: Place, stack: ExitStack, begin: int) -> dict[str, ArrayReader]:
    suffix = path.suffix.lower()
    file, size = _started(path, stack)
    head = file.read(foreign.HEAD_BYTES)
    file.seek(0)
    if not head:
        raise Unreadable("it is empty")
    if head.startswith(NPY):
        return {NAMELESS: _npy(file, size, "the array", begin)}
    if head.startswith(ZIP):
        return _npz(file, size, stack, begin)
    if suffix == ".safetensors" and head[8:9] == b"{":
        return _safetensors(file, size, begin)
    if head.startswith(PARQUET) and find_spec("pyarrow"):
        from lossd.files.parquet import columns

        return columns(file, begin)
    if head.startswith(PNG):
        from lossd.files.png import label_map

        return {NAMELESS: label_map(file, size, begin)}
    if (found := foreign.kind(head, suffix)) is not None:
        what, remedy = found
        raise Unreadable(f"it is {what}, not one of the files that are read ({READ}); {remedy}")
    if suffix == ".csv":
        table = _table(file)
        return {NAMELESS: ArrayReader.held(table.shape, table.itemsize, lambda: table, begin)}
    claimed = f"not {suffix} as its name says" if suffix in SUFFIXES else "of no known kind"
    raise Unreadable(f"it is damaged or of another kind, {claimed}, by its first bytes; write one of {READ}")


def _npy(file: IO[bytes], size: int, name: str, begin: int) -> ArrayReader:
    """Return the array of a .npy file of that many bytes, to be read from a row on."""
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(file)
    except (*BROKEN, NotImplementedError, OSError):
        raise
    except Exception:  # NumPy's message for a bad header suggests to trust the file
        raise Unreadable("its header is damaged; save the array again with numpy.save") from None
    if dtype.hasobject:
        raise Unreadable(
            f"{name} is of Python objects, which are never unpickled; save an array of numbers, such as "
            "numpy.array(rows, dtype=float)"
        )
    if dtype.name not in DTYPES:
        raise DtypeMismatch(f"{name} is of {dtype}")
    described, following = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or described != following:
        raise Unreadable(
            f"its header describes {_shape(shape)} of {dtype}, {described} bytes, and {max(following, 0)} follow it; "
            "it is cut off or damaged, or holds several arrays: save each into a file of its own"
        )

    def read(shape: tuple[int, ...]) -> Array:
        nbytes = math.prod(shape) * dtype.itemsize
        content = file.read(nbytes)  # takes memory as it reads, because the size may be wrong too
        if len(content) != nbytes:
            raise Unreadable(f"{name} is cut off: {len(content)} bytes of {nbytes} are left")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")

    if columns_first or not shape:
        return ArrayReader.held(shape, dtype.itemsize, lambda: read(shape), begin)
    if begin:
        file.seek(begin * math.prod(shape[1:]) * dtype.itemsize, os.SEEK_CUR)
    return ArrayReader(shape, dtype.itemsize, lambda rows: read((rows, *shape[1:])))


def _npz(file: IO[bytes], size: int, stack: ExitStack, begin: int) -> dict[str, ArrayReader]:
    """Return the arrays of a .npz file of that many bytes, to be read from a row on."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except (zipfile.BadZipFile, ValueError):
        raise Unreadable("it is a ZIP archive (.npz is one) that is cut off or damaged") from None
    members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    if not members:
        what, remedy = foreign.archive_kind(archive.namelist())
        raise Unreadable(f"it is {what}; {remedy}")
    columns: dict[str, ArrayReader] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if member.flag_bits & ENCRYPTED:
            raise Unreadable("it is encrypted; unpack it with its password, and save it again with numpy.savez")
        if name in columns:
            raise Unreadable(f"it holds {quoted(name)} twice")
        if member.compress_size > size:  # zipfile would allocate as much
            raise Unreadable(f"it is damaged: {quoted(name)} in it claims more bytes than the file has")
        with _member(name):
            column = _npy(stack.enter_context(archive.open(member)), member.file_size, name, begin)
        column.seeks &= member.compress_type == zipfile.ZIP_STORED  # else rows are unpacked to be passed over
        columns[name] = _within(partial(_member, name), column)
    return columns


@contextmanager
def _member(name: str) -> Iterator[None]:
    """Turn the errors of zipfile into errors that name the member."""
    try:
        yield
    except NotImplementedError:
        raise Unreadable("it is compressed in a way that NumPy does not use; save it again with numpy.savez") from None
    except BROKEN:
        raise Unreadable(f"{quoted(name)} in it is cut off or damaged") from None


def _safetensors(file: IO[bytes], size: int, begin: int) -> dict[str, ArrayReader]:
    """Return the arrays of a .safetensors file of that many bytes, to be read from a row on."""
    length = safetensors.header_bytes(file.read(safetensors.PREFIX_BYTES))
    start = safetensors.PREFIX_BYTES + length
    if size < start:
        raise Unreadable(f"the file ends inside the safetensors header: {size} of {start} bytes")
    header = safetensors.read_header(file.read(length))
    if size != start + header.data_bytes:
        raise Unreadable(f"the header describes {header.data_bytes} bytes of tensors, {size - start} follow it")
    return {entry.name: _tensor(file, start, entry, begin) for entry in header.entries}


def _tensor(file: IO[bytes], start: int, entry: safetensors.Entry, begin: int) -> ArrayReader:
    itemsize = DTYPES[entry.dtype].itemsize
    row_bytes = math.prod(entry.shape[1:]) * itemsize
    position = start + entry.begin + (begin * row_bytes if entry.shape else 0)

    def read(rows: int) -> Array:
        nonlocal position
        file.seek(position)
        content = file.read(rows * row_bytes)
        if len(content) != rows * row_bytes:
            raise Unreadable(f"{quoted(entry.name)} is cut off")
        position += len(content)
        return Tensor(entry.dtype, (rows, *entry.shape[1:])[: len(entry.shape)], memoryview(content)).numpy()

    return ArrayReader(entry.shape, itemsize, read)


def _shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, cut if it is long."""
    text = str(shape)
    return text if len(text) <= 60 else f"{text[:60]}..."


def printable_path(path: Place | str) -> str:
    """Return a path as printable text: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(str(path)).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _table(file: IO[bytes]) -> Array:
    """Return a table of numbers, (rows,) if it has one column, else (rows, columns).

    It is int64 if all are integers, else float64. A first row of words counts as the columns' names.
    """
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            rows = [(number, row) for number, row in enumerate(csv.reader(text), 1) if row]
    except UnicodeDecodeError:
        raise Unreadable("it is not text in UTF-8") from None
    except csv.Error as error:
        raise Unreadable(f"it is not a table: {error}") from None
    if rows and not any(map(_is_number, rows[0][1])):
        _, names = rows.pop(0)
        if not names[0].strip() and len(names) > 1:
            raise Unreadable(
                "its first column has no name: that is an index, as pandas writes; write it with index=False"
            )
    if not rows:
        raise Unreadable("it has no row of numbers")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise Unreadable(f"line {number} has {len(row)} columns, the first has {width}")
        for column, cell in enumerate(row, 1):
            if not _is_number(cell):
                hint = "; put commas between columns" if width == 1 and set(cell) & set(";\t ") else ""
                raise Unreadable(f"line {number}, column {column}: {quoted(cell)} is not a number{hint}")
    cells = [cell.strip() for _, row in rows for cell in row]
    try:
        whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
        table = np.array([int(cell) for cell in cells], np.int64) if whole else np.array(cells, np.float64)
    except (OverflowError, ValueError):
        raise Unreadable("it has an integer beyond 64 bits; write that with a decimal point") from None
    return table if width == 1 else table.reshape(len(rows), width)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
