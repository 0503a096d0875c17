"""Tensors in files: .npy and .csv hold one, .npz and .safetensors hold them by name."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossd_client.errors import DtypeMismatch, MalformedBody
from lossd_client.wire import DTYPES, Tensor, safetensors

__all__ = ["Array", "Source", "read", "sources", "write"]

Array = np.ndarray[Any, Any]

NPY, ZIP = b"\x93NUMPY", b"PK"


def read(path: Path) -> Array | dict[str, Array]:
    """A .npy or .csv file's array, or all arrays of another kind of file by name.

    Raises:
        MalformedBody: The file is not what its name says.
        DtypeMismatch: An array of a dtype that no loss takes.
    """
    try:
        if path.suffix == ".safetensors":
            tensors, _ = safetensors.decode(path.read_bytes())
            found: Array | dict[str, Array] = {name: tensor.numpy() for name, tensor in tensors.items()}
        elif path.suffix == ".csv":
            found = _table(path)
        else:
            with path.open("rb") as file:
                head = file.read(len(NPY))
                # NumPy takes anything else for a pickle, and says how to load one.
                if head != NPY and head[: len(ZIP)] != ZIP:
                    raise ValueError("it is neither .npy nor .npz, by its first bytes")
                file.seek(0)
                loaded = np.load(file, allow_pickle=False)
                found = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise MalformedBody(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive or header fails in as many ways as there are readers in NumPy
        if "Object arrays" in str(error):
            error = ValueError("it holds Python objects, which are never unpickled; save an array of numbers")
        raise MalformedBody(f"{path} cannot be read, it may be damaged or of another kind: {error}") from None
    for name, array in found.items() if isinstance(found, dict) else [("", found)]:
        if array.dtype.name not in DTYPES:
            known = ", ".join(DTYPES)
            raise DtypeMismatch(f"{name or 'the array'} in {path} is of {array.dtype}; convert it to one of {known}")
    return found


def _table(path: Path) -> Array:
    """A table of numbers, (rows,) where it has one column, else (rows, columns).

    It is of int64 if all are integers, else of float64. A first row of words is taken for the columns' names.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    if rows and not any(map(_is_number, rows[0][1])):
        _, names = rows.pop(0)
        if not names[0].strip() and len(names) > 1:
            raise ValueError(
                "its first column has no name: that is an index, as pandas writes; write it with index=False"
            )
    if not rows:
        raise ValueError("it has no row of numbers")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} columns, the first has {width}")
        for column, cell in enumerate(row, 1):
            if not _is_number(cell):
                raise ValueError(f"line {number}, column {column} is no number but {cell!r}")
    cells = [cell.strip() for _, row in rows for cell in row]
    whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
    table = np.array([int(cell) for cell in cells], np.int64) if whole else np.array(cells, np.float64)
    return table if width == 1 else table.reshape(len(rows), width)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as the file's suffix says.

    Raises:
        ValueError: Another suffix, or a .npy file for several arrays.
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
        name: What results call it.
        paths: By input; under an empty name, the file that names its arrays itself.
    """

    name: str
    paths: Mapping[str, Path]

    @property
    def nbytes(self) -> int:
        """What the files take; 0 for one that is gone."""
        return sum(path.stat().st_size for path in self.paths.values() if path.exists())

    def read(self) -> dict[str, Array]:
        """The inputs by name.

        Raises:
            MalformedBody, DtypeMismatch: See :func:`read`; or it is an array without a name.
        """
        inputs: dict[str, Array] = {}
        for name, path in self.paths.items():
            found = read(path)
            if isinstance(found, dict):
                inputs |= found
            elif name:
                inputs[name] = found
            else:
                raise MalformedBody(f"{path} does not say which input it is; call it {path.stem}_prediction.npy, say")
        return inputs


def sources(directory: Path, inputs: Sequence[str]) -> list[Source]:
    """What a directory holds, by name: .safetensors, .npz, and .npy files that belong together.

    Those are called alike up to the input's name: ``7_prediction.npy`` and ``7_target.npy``.

    Args:
        directory: Where; directories in it are not looked into.
        inputs: What inputs may be called.
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
    return [Source(name or min(paths.values()).name, paths) for name, paths in found.items()]
