"""Tensors in files: .npy and .csv hold one, .npz, .safetensors and Parquet tables hold several by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossd.cli.column import Array, Column
from lossd.cli.opening import NAMELESS, opened, printable
from lossd_client.errors import MalformedBody
from lossd_client.wire import Tensor, safetensors

__all__ = ["Array", "Source", "listed", "others", "printable", "read", "sources", "write"]

MAX_NAMES = 5

NAMING = (".npz", ".safetensors")
"""The suffixes of files that name their arrays."""


def read(path: Path) -> Array | dict[str, Array]:
    """Return the array of a .npy or .csv file, or all arrays of another kind of file by name.

    Raises:
        MalformedBody: The file is of another kind or damaged, or cannot be opened.
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
    paths: Mapping[str, Path]
    twice: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the files; a missing file counts as 0."""
        return sum(map(_size, self.paths.values()))

    @property
    def reads_rows(self) -> bool:
        """Whether the shapes of the arrays are known before they are read."""
        return not any(path.suffix == ".csv" for path in self.paths.values())

    def open(self, stack: ExitStack) -> dict[str, Column]:
        """Return the inputs by name, of which nothing is read yet; ``stack`` closes the files.

        Raises:
            MalformedBody, DtypeMismatch: As for :func:`read`; or an array has no name, or an input has two files.
        """
        if self.twice is not None:
            named = printable(Path(self.twice.stem))
            raise MalformedBody(f"{named} is there as .npy and as .csv; remove one of them")
        inputs: dict[str, Column] = {}
        for name, path in self.paths.items():
            columns = opened(path, stack)
            if name and NAMELESS in columns:
                columns = {name: columns[NAMELESS]}
            elif NAMELESS in columns:
                better = printable(Path(f"{path.stem}_prediction{path.suffix}"))
                raise MalformedBody(
                    f"{printable(path)} does not say which input it is; rename it, for example to {better}"
                )
            inputs |= columns
        return inputs

    def read(self) -> dict[str, Array]:
        """Return the inputs by name; errors are those of :meth:`open`."""
        with ExitStack() as stack:
            return {name: column.whole() for name, column in self.open(stack).items()}


def sources(directory: Path, inputs: Sequence[str], *, tables: bool = False) -> list[Source]:
    """Return the sources in a directory: .safetensors, .npz, and groups of .npy and .csv files.

    Names of a group differ only in the input's name: ``7_prediction.npy`` and ``7_target.csv``. A .csv file whose name
    has no input is no source: it may be a table of results.

    Args:
        directory: The directory, without its subdirectories.
        inputs: The possible names of inputs.
        tables: Whether Parquet tables are sources too.
    """
    found: dict[str, dict[str, Path]] = {}
    twice: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        name = _input(path, inputs)
        if path.suffix in NAMING or (tables and path.suffix == ".parquet"):
            found[path.name] = {NAMELESS: path}
        elif path.suffix == ".npy" or (path.suffix == ".csv" and name):
            stem = path.stem.removesuffix(name).rstrip("._-") if name else path.name
            group = found.setdefault(stem, {})
            if name in group:
                twice[stem] = path
            group[name] = path
    return [
        Source(printable(Path(stem or min(paths.values()).name)), paths, twice.get(stem))
        for stem, paths in found.items()
    ]


def listed(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return f"{', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}"


def others(directory: Path, taken: Sequence[Source]) -> list[str]:
    """Return the names of a directory's files that are in no source, without hidden ones."""
    paths = {path for source in taken for path in source.paths.values()}
    return [
        printable(Path(path.name))
        for path in sorted(directory.iterdir())
        if path not in paths and not path.name.startswith(".") and path.is_file()
    ]


def _input(path: Path, inputs: Sequence[str]) -> str:
    """Return the input that a file's name ends in; an empty string if there is none."""
    fitting = [name for name in inputs if path.stem == name or path.stem.endswith((f"_{name}", f".{name}", f"-{name}"))]
    return max(fitting, key=len, default=NAMELESS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
