"""Tensors in files: .npy, .csv and .png hold one, .npz, .safetensors and Parquet tables hold several by name."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lossd.files.array_reader import Array, ArrayReader
from lossd.files.opening import NAMELESS, UnreadableFile, opened, printable_path
from lossd.files.places import Place, Remote, parts, version
from lossd_client.wire import Tensor, safetensors

__all__ = ["Array", "Source", "names_of", "printable_path", "read", "sources", "unused_files", "write"]

MAX_NAMES = 5

NAMING = (".npz", ".safetensors")
"""The suffixes of files that name their arrays."""


def read(path: Place) -> Array | dict[str, Array]:
    """Return the array of a .npy, .csv or .png file, or all arrays of another kind of file by name.

    Raises:
        UnreadableFile: The file is of another kind or damaged, or cannot be opened.
        DtypeMismatch: No loss takes the dtype of an array.
    """
    with ExitStack() as stack:
        arrays = {name: column.whole() for name, column in opened(path, stack).items()}
    return arrays[NAMELESS] if arrays.keys() == {NAMELESS} else arrays


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
        twice: A second file of an input that has one; None if there is none.
    """

    name: str
    paths: Mapping[str, Place]
    twice: Place | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the files; a missing file counts as 0."""
        return sum(map(_size, self.paths.values()))

    @property
    def reads_rows(self) -> bool:
        """Whether the shapes of the arrays are known before they are read."""
        return not any(path.suffix == ".csv" for path in self.paths.values())

    @property
    def version(self) -> dict[str, list[str]]:
        """The place of each input, and what changes with the content of its file."""
        return {name: [str(path), version(path)] for name, path in self.paths.items()}

    def absolute(self) -> Source:
        """Return the source with absolute paths, which other processes can open."""
        paths = {name: path if isinstance(path, Remote) else path.absolute() for name, path in self.paths.items()}
        return replace(self, paths=paths)

    def open(self, stack: ExitStack, begin: int = 0) -> dict[str, ArrayReader]:
        """Return the inputs by name, unread; ``stack`` closes the files.

        Args:
            stack: Closes the files.
            begin: The first row to read.

        Raises:
            UnreadableFile, DtypeMismatch: As for :func:`read`; or an array has no name, or an input has two files.
        """
        if self.twice is not None:
            raise UnreadableFile(f"{printable_path(self.twice.name)} is a second file of one input; remove one of them")
        inputs: dict[str, ArrayReader] = {}
        for name, path in self.paths.items():
            columns = opened(path, stack, begin)
            if name and NAMELESS in columns:
                columns = {name: columns[NAMELESS]}
            elif NAMELESS in columns:
                better = printable_path(f"{path.stem}_prediction{path.suffix}")
                raise UnreadableFile(
                    f"{printable_path(path)} does not say which input it is; rename it, for example to {better}"
                )
            inputs |= columns
        return inputs

    def read(self) -> dict[str, Array]:
        """Return the inputs by name; errors are those of :meth:`open`."""
        with ExitStack() as stack:
            return {name: column.whole() for name, column in self.open(stack).items()}


def sources(places: Collection[Place], inputs: Sequence[str], *, tables: bool = False) -> list[Source]:
    """Return the sources that files make: .safetensors, .npz, and groups of .npy, .csv and .png files.

    Names of a group differ only in the input's name: ``7_prediction.npy`` and ``7_target.csv``. A .csv or .png file
    whose name has no input is no source: it may be a table of results, or a picture. Each file counts once, however
    often it is given. The order is that of the files' directories and names. A source's name begins where the places of
    the files differ.

    Args:
        places: The files.
        inputs: The possible names of inputs.
        tables: Whether Parquet tables are sources too.
    """
    found: dict[tuple[str, ...], dict[str, Place]] = {}
    twice: dict[tuple[str, ...], Place] = {}
    by_parts = {parts(place): place for place in places}
    for of_place, path in sorted(by_parts.items()):
        name, folder = _input(path, inputs), of_place[:-1]
        if path.suffix in NAMING or (tables and path.suffix == ".parquet"):
            found[of_place] = {NAMELESS: path}
        elif path.suffix == ".npy" or (path.suffix in (".csv", ".png") and name):
            stem = path.stem.removesuffix(name).rstrip("._-") if name else path.name
            group = found.setdefault((*folder, stem), {})
            if name in group:
                twice[*folder, stem] = path
            group[name] = path
    folders = [of_place[:-1] for of_place in by_parts]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071  (of tuples, it compares their elements)

    def name_of(source: tuple[str, ...]) -> str:
        last = source[-1] or min(found[source].values(), key=parts).name
        return printable_path(os.path.join(*source[shared:-1], last))

    return [Source(name_of(source), paths, twice.get(source)) for source, paths in found.items()]


def names_of(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return f"{', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}"


def unused_files(places: Collection[Place], taken: Sequence[Source]) -> list[str]:
    """Return the names of the files that are in no source, without hidden ones."""
    paths = {path for source in taken for path in source.paths.values()}
    return [
        printable_path(path.name)
        for path in sorted(places, key=parts)
        if path not in paths and not path.name.startswith(".") and (isinstance(path, Remote) or path.is_file())
    ]


def _input(path: Place, inputs: Sequence[str]) -> str:
    """Return the input that a file's name ends in; an empty string if there is none."""
    fitting = [name for name in inputs if path.stem == name or path.stem.endswith((f"_{name}", f".{name}", f"-{name}"))]
    return max(fitting, key=len, default=NAMELESS)


def _size(path: Place) -> int:
    if isinstance(path, Remote):
        return path.size
    try:
        return path.stat().st_size
    except OSError:
        return 0
