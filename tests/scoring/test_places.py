"""``lossd score`` reads what paths, patterns and URLs name, as one data set with rows in the order of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import lossd.files.sources as files
from lossd.cli import main
from lossd.files.places import Remote, Unlisted, listed
from lossd.scoring.blocks import Piece, blocks

ROWS = 60
TASK = ("--task", "multiclass", "--metrics", "accuracy,log_loss,auroc")


def score(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments), *TASK, "--json"])


def answer(*arguments: str | Path) -> dict[str, Any]:
    """The answer without the seconds it took."""
    result = score(*arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    del found["files"]["seconds"]
    return found


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {"prediction": random.standard_normal((ROWS, 3)), "target": random.integers(0, 3, ROWS)}


@pytest.fixture
def folders(tmp_path: Path, inputs: dict[str, Any]) -> Path:
    """Two directories: files 0 to 2 of rows 0 to 29 in one, files of another kind in the other."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for number in range(3):
        part = slice(10 * number, 10 * number + 10)
        files.write(tmp_path / f"a/{number}.npz", {name: array[part] for name, array in inputs.items()})
    for name, array in inputs.items():
        fmt = "%.17g" if array.dtype.kind == "f" else "%d"
        np.savetxt(tmp_path / f"b/x_{name}.csv", array[30:], delimiter=",", fmt=fmt)
    return tmp_path


def test_what_names_the_files_changes_nothing(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories, their files, a pattern, relative paths, any order, and a file that is named twice."""
    expected = answer(folders / "a", folders / "b")
    assert (expected["counted"]["rows"], expected["files"]["of"], expected["missing"]) == (ROWS, 4, [])
    names = sorted([*folders.glob("a/*"), *folders.glob("b/*")])
    assert answer(*names) == answer(*reversed(names)) == answer(*names, names[0]) == expected
    assert answer(folders / "*" / "*") == answer(folders / "**" / "*.*") == expected
    monkeypatch.chdir(folders)
    assert answer("b", "a") == answer("a", folders / "b") == answer("*/*") == expected


def test_a_bad_file_is_named_by_where_the_places_differ(folders: Path) -> None:
    (folders / "b/1.npz").write_bytes(b"PK\x03\x04")
    assert score(folders / "a", folders / "b").stderr.startswith("b/1.npz: Unreadable file: ")
    assert score(folders / "b").stderr.startswith("1.npz: Unreadable file: ")


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_url_is_read_by_fsspec(protocol: str, folders: Path) -> None:
    root = f"memory:/{folders}" if protocol == "memory" else f"file://{folders}"
    if protocol == "memory":
        system = fsspec.filesystem("memory")
        for path in folders.glob("*/*"):
            system.pipe(str(path), path.read_bytes())
    expected = answer(folders / "a", folders / "b")
    assert answer(f"{root}/a", f"{root}/b") == answer(f"{root}/a/", f"{root}/b") == answer(f"{root}/*/*") == expected
    assert answer(f"{root}/a", folders / "b")["metrics"] == expected["metrics"]
    assert answer(*(f"{root}/a/{number}.npz" for number in range(3))) == answer(folders / "a")
    (folders / "a/9.npz").write_bytes(b"PK\x03\x04")
    (place,) = [place for place in listed(f"file://{folders}/a") if place.name == "9.npz"]
    assert isinstance(place, Remote)
    assert place.size == 4
    assert f"file://{folders}/a/9.npz cannot be read: it is a ZIP archive" in score(f"file://{folders}/a").stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing does not exist"),
        ("no*thing", "no file matches no*thing"),
        ("memory://nothing", "memory://nothing does not exist"),
        ("memory://no*thing", "no file matches memory://no*thing"),
        ("adl2://x", "adl2://x cannot be listed: Protocol not known: adl2"),
        ("simplecache::s3://a/b", "is a chain of URLs, which are not read; name the files by one URL"),
    ],
)
def test_a_place_without_files_is_wrong_usage(path: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = score(path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_missing_package_of_a_protocol_is_named(protocol: str, package: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unlisted) as error:
        listed(f"{protocol}://bucket/predictions")
    assert f"needs the package {package}, which is not installed: pip install {package}" in str(error.value)


def test_a_file_system_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(fsspec.filesystem("memory"), "isdir", refused)
    with pytest.raises(Unlisted, match=r"memory://a cannot be listed: Unable to locate credentials; .* for memory"):
        listed("memory://a")


def test_fsspec_is_loaded_for_a_url_alone(folders: Path) -> None:
    check = "; print(*{'fsspec', 'ray', 'dask', 'distributed', 'concurrent.futures.process'} & {*sys.modules})"
    for place, loaded in ((folders, ""), (f"file://{folders}", "fsspec")):
        # Listed without an evaluation, because torch itself loads fsspec.
        listing = f"import lossd.files.places as places; places.listed('{place}/a'); import sys"
        run = subprocess.run([sys.executable, "-c", listing + check], capture_output=True, text=True, check=True)
        assert run.stdout.split() == loaded.split()


# A file from any row on


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet", ".csv", "packed"])
@pytest.mark.parametrize("begin", [0, 7, 20, 41])
def test_a_file_is_read_from_any_row_on(suffix: str, begin: int, tmp_path: Path, inputs: dict[str, Any]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet

    if suffix == ".parquet":
        table = arrow.table({"prediction": list(inputs["prediction"]), "target": inputs["target"]})
        arrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    elif suffix == "packed":
        np.savez_compressed(tmp_path / "a.npz", **inputs)
    elif suffix in (".npy", ".csv"):
        for name, array in inputs.items():
            if suffix == ".npy":
                np.save(tmp_path / f"a_{name}.npy", array)
            else:
                np.savetxt(tmp_path / f"a_{name}.csv", array, delimiter=",", fmt="%.17g" if array.ndim > 1 else "%d")
    else:
        files.write(tmp_path / f"a{suffix}", inputs)
    (source,) = files.sources([*tmp_path.iterdir()], [*inputs], tables=True)
    pieces = [Piece(source, begin, 55)]
    for block_bytes in (1 << 20, 200):
        found = [*blocks(pieces, [*inputs], splits=True, block_bytes=block_bytes)]
        assert [block.problem for block in found] == [None] * len(found)
        assert (len(found) > 1) == (block_bytes == 200)
        assert (found[0].first, found[-1].last, {block.rows for block in found}) == (True, True, {55 - begin})
        for name, array in inputs.items():
            np.testing.assert_array_equal(np.concatenate([b.arrays[name] for b in found]), array[begin:55])
