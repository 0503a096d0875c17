"""Tensors in files: .npy holds one, .npz and .safetensors hold them by name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lossd_client.errors import DtypeMismatch, MalformedBody
from lossd_client.wire import DTYPES, Tensor, safetensors

__all__ = ["Array", "read", "write"]

Array = np.ndarray[Any, Any]


def read(path: Path) -> Array | dict[str, Array]:
    """A .npy file's array, or all arrays of another kind of file by name.

    Raises:
        MalformedBody: The file is not what its name says.
        DtypeMismatch: An array of a dtype that no loss takes.
    """
    try:
        if path.suffix == ".safetensors":
            tensors, _ = safetensors.decode(path.read_bytes())
            found: Array | dict[str, Array] = {name: tensor.numpy() for name, tensor in tensors.items()}
        else:
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                found = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (MalformedBody, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MalformedBody(f"{path} cannot be read: {error}") from None
    for name, array in found.items() if isinstance(found, dict) else [("", found)]:
        if array.dtype.name not in DTYPES:
            known = ", ".join(DTYPES)
            raise DtypeMismatch(f"{name or 'the array'} in {path} is of {array.dtype}; convert it to one of {known}")
    return found


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
