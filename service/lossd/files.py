"""Tensors in files: .npy holds one, .npz and .safetensors hold them by name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossd_client.errors import DtypeMismatch, MalformedBody
from lossd_client.wire import DTYPES, Tensor, safetensors

__all__ = ["Array", "Source", "read", "sources", "write"]

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
    except (MalformedBody, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
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
