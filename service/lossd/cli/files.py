"""Tensors in files: .npy and .csv hold one, .npz and .safetensors hold several by name."""

from __future__ import annotations

import csv
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import lossd.cli.foreign_files as foreign
from lossd_client.errors import DtypeMismatch, MalformedBody, Problem
from lossd_client.wire import DTYPES, Tensor, safetensors
from lossd_client.wire.quoting import quoted

__all__ = ["Array", "Source", "others", "printable", "read", "sources", "write"]

Array = np.ndarray[Any, Any]

NPY, ZIP = b"\x93NUMPY", b"PK"
ENCRYPTED = 1
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError)
SUFFIXES = (".npy", ".npz", ".safetensors")


class _Unreadable(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Why a file cannot be read."""


def read(path: Path) -> Array | dict[str, Array]:
    """Return the array of a .npy or .csv file, or all arrays of another kind of file by name.

    The first bytes decide a file's kind; for .csv and .safetensors, which have no signature, the name does. No more
    memory is taken than the file's size accounts for, whatever its header claims.

    Raises:
        MalformedBody: The file is of another kind or damaged, or cannot be opened.
        DtypeMismatch: No loss takes the dtype of an array.
    """
    named = printable(path)
    try:
        return _read(path)
    except DtypeMismatch as error:
        raise DtypeMismatch(f"{error.detail} in {named}; convert it to one of {', '.join(DTYPES)}") from None
    except OSError as error:
        reason = error.strerror or str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except (_Unreadable, Problem) as error:
        reason = str(error)
    except Exception as error:  # readers of a damaged archive raise many kinds of errors
        reason = f"it is damaged ({type(error).__name__})"
    raise MalformedBody(f"{named} cannot be read: {reason}")


def _read(path: Path) -> Array | dict[str, Array]:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
        if stat.S_ISDIR(mode):
            raise _Unreadable("it is a directory; --batch evaluates the files in one")
        raise _Unreadable("it is a pipe or a device; write the array into a file")
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(foreign.HEAD_BYTES)
        file.seek(0)
        if not head:
            raise _Unreadable("it is empty")
        if head.startswith(NPY):
            return _array(file, path.stat().st_size, "the array")
        if head.startswith(ZIP):
            return _archive(file, path.stat().st_size)
        if suffix == ".safetensors" and head[8:9] == b"{":
            tensors, _ = safetensors.decode(file.read())
            return {name: tensor.numpy() for name, tensor in tensors.items()}
    if (found := foreign.kind(head, suffix)) is not None:
        what, remedy = found
        raise _Unreadable(
            f"it is {what}, not one of the files that are read (.npy, .npz, .safetensors, .csv); {remedy}"
        )
    if suffix == ".csv":
        return _table(path)
    claimed = f"not {suffix} as its name says" if suffix in SUFFIXES else "of no known kind"
    raise _Unreadable(
        f"it is damaged or of another kind, {claimed}, by its first bytes; write .npy, .npz, .safetensors or .csv"
    )


def _array(file: IO[bytes], size: int, name: str) -> Array:
    """Return the array of a .npy file of that many bytes."""
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(file)
    except (*BROKEN, NotImplementedError, OSError):
        raise
    except Exception:  # NumPy's message for a bad header suggests to trust the file
        raise _Unreadable("its header is damaged; save the array again with numpy.save") from None
    if dtype.hasobject:
        raise _Unreadable(
            f"{name} is of Python objects, which are never unpickled; save an array of numbers, such as "
            "numpy.array(rows, dtype=float)"
        )
    if dtype.name not in DTYPES:
        raise DtypeMismatch(f"{name} is of {dtype}")
    count = math.prod(shape)
    described, following = count * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or described != following:
        raise _Unreadable(
            f"its header describes {_shape(shape)} of {dtype}, {described} bytes, and {max(following, 0)} follow it; "
            "it is cut off or damaged, or holds several arrays: save each into a file of its own"
        )
    content = file.read(described)  # takes memory as it reads, because the size may be wrong too
    if len(content) != described:
        raise _Unreadable(f"{name} is cut off after {len(content)} of {described} bytes")
    return np.frombuffer(content, dtype, count).reshape(shape, order="F" if columns_first else "C")


def _archive(file: IO[bytes], size: int) -> dict[str, Array]:
    """Return the arrays of a .npz file of that many bytes."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError):
        raise _Unreadable("it is a ZIP archive (.npz is one) that is cut off or damaged") from None
    with archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if not members:
            what, remedy = foreign.archive_kind(archive.namelist())
            raise _Unreadable(f"it is {what}; {remedy}")
        arrays: dict[str, Array] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if member.flag_bits & ENCRYPTED:
                raise _Unreadable("it is encrypted; unpack it with its password, and save it again with numpy.savez")
            if name in arrays:
                raise _Unreadable(f"it holds {quoted(name)} twice")
            if member.compress_size > size:  # zipfile would allocate as much
                raise _Unreadable(f"it is damaged: {quoted(name)} in it claims more bytes than the file has")
            try:
                with archive.open(member) as content:
                    arrays[name] = _array(content, member.file_size, name)
            except NotImplementedError:
                raise _Unreadable(
                    "it is compressed in a way that NumPy does not use; save it again with numpy.savez"
                ) from None
            except BROKEN:
                raise _Unreadable(f"{quoted(name)} in it is cut off or damaged") from None
        return arrays


def _shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, cut if it is long."""
    text = str(shape)
    return text if len(text) <= 60 else f"{text[:60]}..."


def printable(path: Path) -> str:
    """Return a path as printable text: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _table(path: Path) -> Array:
    """Return a table of numbers, (rows,) if it has one column, else (rows, columns).

    It is int64 if all are integers, else float64. A first row of words counts as the columns' names.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except UnicodeDecodeError:
        raise _Unreadable("it is no text in UTF-8") from None
    except csv.Error as error:
        raise _Unreadable(f"it is no table: {error}") from None
    if rows and not any(map(_is_number, rows[0][1])):
        _, names = rows.pop(0)
        if not names[0].strip() and len(names) > 1:
            raise _Unreadable(
                "its first column has no name: that is an index, as pandas writes; write it with index=False"
            )
    if not rows:
        raise _Unreadable("it has no row of numbers")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise _Unreadable(f"line {number} has {len(row)} columns, the first has {width}")
        for column, cell in enumerate(row, 1):
            if not _is_number(cell):
                hint = "; put commas between columns" if width == 1 and set(cell) & set(";\t ") else ""
                raise _Unreadable(f"line {number}, column {column} is no number but {quoted(cell)}{hint}")
    cells = [cell.strip() for _, row in rows for cell in row]
    try:
        whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
        table = np.array([int(cell) for cell in cells], np.int64) if whole else np.array(cells, np.float64)
    except (OverflowError, ValueError):
        raise _Unreadable("it has an integer beyond 64 bits; write that with a decimal point") from None
    return table if width == 1 else table.reshape(len(rows), width)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays in the format of the file's suffix.

    Raises:
        ValueError: The suffix is another, or a .npy file would hold several arrays.
    """
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    elif path.suffix == ".safetensors":
        pieces = safetensors.encode({name: Tensor.of(array) for name, array in arrays.items()}, {})
        with path.open("wb") as file:
            file.writelines(pieces)
    elif path.suffix == ".npy":
        if len(arrays) != 1:
            raise ValueError(f"{path} holds one array, there are {len(arrays)}: write a .npz or .safetensors file")
        np.save(path, next(iter(arrays.values())), allow_pickle=False)
    else:
        raise ValueError(f"{path} must end in .npy, .npz or .safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of one evaluation, in files.

    Attributes:
        name: The source's name in results.
        paths: The file of each input; under an empty name, a file that names its arrays.
    """

    name: str
    paths: Mapping[str, Path]

    @property
    def nbytes(self) -> int:
        """Bytes of the files; a missing file counts as 0."""
        return sum(map(_size, self.paths.values()))

    def read(self) -> dict[str, Array]:
        """Return the inputs by name.

        Raises:
            MalformedBody, DtypeMismatch: As for :func:`read`; or an array has no name.
        """
        inputs: dict[str, Array] = {}
        for name, path in self.paths.items():
            found = read(path)
            if isinstance(found, dict):
                inputs |= found
            elif name:
                inputs[name] = found
            else:
                better = printable(Path(f"{path.stem}_prediction.npy"))
                raise MalformedBody(
                    f"{printable(path)} does not say which input it is; rename it, for example to {better}"
                )
        return inputs


def sources(directory: Path, inputs: Sequence[str]) -> list[Source]:
    """Return the sources in a directory: .safetensors, .npz, and groups of .npy files.

    Names of a group differ only in the input's name: ``7_prediction.npy`` and ``7_target.npy``.

    Args:
        directory: The directory, without its subdirectories.
        inputs: The possible names of inputs.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".safetensors", ".npz"):
            found[path.name] = {"": path}
        elif path.suffix == ".npy":
            fitting = [
                name for name in inputs if path.stem == name or path.stem.endswith((f"_{name}", f".{name}", f"-{name}"))
            ]
            name = max(fitting, key=len, default="")
            stem = path.stem.removesuffix(name).rstrip("._-") if name else path.name
            found.setdefault(stem, {})[name] = path
    return [Source(printable(Path(name or min(paths.values()).name)), paths) for name, paths in found.items()]


def others(directory: Path) -> list[str]:
    """Return the names of the files that :func:`sources` leaves out, without hidden ones."""
    return [
        printable(Path(path.name))
        for path in sorted(directory.iterdir())
        if path.suffix not in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
