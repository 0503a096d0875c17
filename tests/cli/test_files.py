"""Files that people have: each is read, or named for what it is, with what to do; none ends in a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import lossd.files.sources as files
from lossd.cli import main
from lossd.files.opening import opened
from lossd_client.errors import DtypeMismatch, MalformedBody

SCORES = np.arange(6, dtype=np.float32).reshape(3, 2)
LABELS = np.array([0, 1, 1])


def lossd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [os.fspath(argument) for argument in arguments])


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claims(shape: str, content: bytes = bytes(24), *, version: int = 1, padding: int = 118) -> bytes:
    """A .npy file whose header says that shape."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(padding - 1) + b"\n"
    return (
        b"\x93NUMPY" + bytes((version, 0)) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + content
    )


def archive(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


def patched(content: bytes, *changes: tuple[int, bytes]) -> bytes:
    """An archive of one member with bytes of its entry in the central directory changed."""
    changed, start = bytearray(content), content.index(b"PK\x01\x02")
    for at, new in changes:
        changed[start + at : start + at + len(new)] = new
    return bytes(changed)


def checkpoint(*, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    arrow.parquet.write_table(arrow.table(columns), file)
    return file.getvalue()


def nifti() -> bytes:
    """The head of NIfTI-1, 348 bytes with "n+1" at 344, then voxels."""
    return (348).to_bytes(4, "little").ljust(344, b"\0") + b"n+1\0" + bytes(4) + os.urandom(4096)


ONE = archive({"prediction.npy": npy(SCORES)})

FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "checkpoint.pt": (lambda: checkpoint(legacy=False), "Python objects, as torch.save writes.*numpy"),
    "legacy.pt": (lambda: checkpoint(legacy=True), "Python objects, as torch.save writes.*numpy"),
    "checkpoint.npz": (lambda: checkpoint(legacy=False), "Python objects, as torch.save writes.*numpy"),
    "objects.pkl": (lambda: pickle.dumps({"a": 1}), "Python objects.*numpy.save"),
    "objects.npy": (lambda: pickle.dumps([1, 2]), "Python objects.*numpy.save"),
    "things.zip": (lambda: archive({"readme.md": b"x"}), "ZIP archive without an array, with 'readme.md'"),
    "things.npz": (lambda: archive({"readme.md": b"x"}), "ZIP archive without an array, with 'readme.md'"),
    "nothing.npz": (lambda: archive({}), "ZIP archive without an array"),
    "sheet.xlsx": (lambda: archive({"[Content_Types].xml": b"<"}), "Office document.*csv"),
    "locked.npz": (lambda: patched(ONE, (8, b"\x01\x00")), "encrypted.*password"),
    "method.npz": (lambda: patched(ONE, (10, b"\x63\x00")), "compressed in a way that NumPy does not.*numpy.savez"),
    "cut.npz": (lambda: ONE[:150], "cut off or damaged"),
    "flipped.npz": (lambda: ONE.replace(SCORES.tobytes(), bytes(24)), "cut off or damaged"),
    "objects.npz": (lambda: archive({"prediction.npy": object_array()}), "prediction is of Python objects.*numbers"),
    "text.npy": (lambda: b"1.5 2.5\n", "it is text.*csv"),
    "data.json": (lambda: b'{"prediction": [1, 2]}', "it is JSON.*json.load"),
    "data.npy": (lambda: b"[[1, 2], [3, 4]]", "it is JSON.*json.load"),
    "page.csv.html": (lambda: b"<html></html>", "it is XML or HTML"),
    "image.png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG image whose header is damaged"),
    "colours.png": (lambda: png(np.zeros((2, 3, 3), np.uint8)), "PNG image of RGB colours.*write the classes"),
    "cut.png": (lambda: png(np.arange(4096, dtype=np.uint8).reshape(64, 64) * 7)[:60], "truncated"),
    "huge.png": (lambda: huge_png(), "bytes do not hold its 99999 × 99999 pixels"),
    "image.png.gz": (lambda: gzip.compress(png(np.zeros((2, 3), np.uint8))), "PNG image, packed with gzip"),
    "image.npy": (lambda: b"\xff\xd8\xff\xe0" + bytes(40), "JPEG image.*pixels"),
    "table.parquet": (lambda: b"PAR1" + bytes(40) + b"PAR1", "Parquet table that is damaged.*pandas"),
    "table.csv": (lambda: b"PAR1" + bytes(40) + b"PAR1", "Parquet table that is damaged.*pandas"),
    "gaps.parquet": (lambda: parquet(target=[1, None]), "column 'target' has 1 missing values; fill or drop them"),
    "ragged.parquet": (lambda: parquet(prediction=[[1.0, 2.0], [3.0]]), "the lists of column 'prediction' differ"),
    "hole.parquet": (lambda: parquet(prediction=[[1.0], None]), "column 'prediction' has 1 missing values"),
    "table.feather": (lambda: b"ARROW1\0\0" + bytes(40), "Arrow.*pandas"),
    "old.mat": (lambda: b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(128) + bytes(40), "MATLAB.*loadmat"),
    "new.mat": (lambda: b"MATLAB 7.3 MAT-file, Platform".ljust(512) + b"\x89HDF\r\n\x1a\n", "MATLAB.*h5py"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5.*h5py"),
    "scan.nii": (nifti, "NIfTI.*nibabel"),
    "scan.nii.gz": (lambda: gzip.compress(nifti()), "NIfTI volume, packed with gzip.*nibabel"),
    "array.npy.gz": (lambda: gzip.compress(npy(SCORES)), "packed with gzip.*unpack"),
    "excel.csv": (lambda: "a,b\n1,2\n".encode("utf-16"), "UTF-16.*UTF-8"),
    "latin.csv": (lambda: b"gr\xf6\xdfe\n1\n", "not text in UTF-8"),
    "semicolons.csv": (lambda: b"a;b\n1;2\n", "'1;2' is not a number; put commas"),
    "long.csv": (lambda: b"1" * 200_000, "field larger than field limit"),
    "wide.csv": (lambda: b"9" * 5_000, "integer beyond 64 bits"),
    "empty.npy": (lambda: b"", "it is empty"),
    "empty.csv": (lambda: b"", "it is empty"),
    "empty.safetensors": (lambda: b"", "it is empty"),
    "noise.npy": (lambda: b"\x00\x01\x02" * 99, "not .npy as its name says"),
    "noise.safetensors": (lambda: b"\xff" * 30, "not .safetensors as its name says"),
    "huge.npy": (lambda: claims("(99999999999,)"), "describes .* 799999999992 bytes, and 24 follow"),
    "huge.npz": (lambda: archive({"a.npy": claims("(99999999999,)")}), "799999999992 bytes, and 24 follow"),
    "overflow.npy": (lambda: claims("(4611686018427387904, 4)"), "and 24 follow"),
    "negative.npy": (lambda: claims("(-1,)"), "and 24 follow"),
    "several.npy": (lambda: npy(LABELS) * 2, "several arrays: save each into a file"),
    "header.npy": (lambda: claims("(3,)", version=2, padding=20_000), "its header is damaged"),
    "nested.npy": (lambda: claims("(" * 90), "its header is damaged"),
}


def png(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


def huge_png() -> bytes:
    return png(np.zeros((2, 3), np.uint8)).replace(struct.pack(">II", 3, 2), struct.pack(">II", 99999, 99999))


def object_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target.npy"
    np.save(path, LABELS)
    return path


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named_for_what_it_is(name: str, tmp_path: Path, target: Path) -> None:
    make, pattern = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(make())
    result = lossd("evaluate", path, target, "--loss", "cross_entropy")
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"Unreadable file: {path} cannot be read: ")
    assert re.search(pattern, result.stderr), result.stderr
    assert not re.search("allow_pickle|trust|unsafe|pickled \\(object", result.stderr)
    assert result.stderr.count("\n") == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path, target: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    result = lossd("evaluate", tmp_path / "pipe.npy", target, "--loss", "cross_entropy")
    assert (result.exit_code, "is a pipe" in result.stderr) == (1, True), result.output


@pytest.mark.parametrize("name", ["huge.npy", "huge.npz"])
def test_a_header_that_lies_takes_no_memory(name: str, tmp_path: Path) -> None:
    """The claim is of 800 GB; NumPy allocates what a header says, and only then looks what is there."""
    content = claims("(1000000000,)")
    path = tmp_path / name
    path.write_bytes(content if name.endswith("npy") else archive({"a.npy": content}))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBody):
            files.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_an_archive_s_directory_that_lies_takes_no_memory(tmp_path: Path) -> None:
    content = claims("(500000000,)")
    size = (4_000_000_000 + len(content) - 24).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(patched(archive({"a.npy": content}), (20, size), (24, size)))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBody, match=r"cut off|damaged"):
            files.read(tmp_path / "a.npz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "array",
    [SCORES, np.asfortranarray(SCORES), SCORES.astype(">f4"), SCORES[:, ::-1], SCORES[:0], np.float32(3), LABELS > 0],
    ids=["rows", "columns first", "big-endian", "reversed", "no rows", "one number", "booleans"],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".npy, version 3", ".npz, packed"])
def test_what_numpy_writes_is_read(array: np.ndarray[Any, Any], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix[:4]}"
    with path.open("wb") as file:
        if suffix.startswith(".npz"):
            (np.savez_compressed if "packed" in suffix else np.savez)(file, a=array)
        else:
            np.lib.format.write_array(file, np.asanyarray(array), version=(3, 0) if "3" in suffix else None)
    found = files.read(path)
    found = found["a"] if isinstance(found, dict) else found
    np.testing.assert_array_equal(found, array, strict=True)


LISTS = [arrow.list_(arrow.float32()), arrow.list_(arrow.float32(), 2), arrow.large_list(arrow.float32())]


@pytest.mark.parametrize("lists", LISTS, ids=str)
def test_a_parquet_table_holds_the_inputs_by_name(lists: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(prediction=arrow.array(list(SCORES), lists), target=LABELS, mask=LABELS > 0))
    found = files.read(path)
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["prediction"], SCORES, strict=True)
    np.testing.assert_array_equal(found["target"], LABELS, strict=True)
    np.testing.assert_array_equal(found["mask"], LABELS > 0, strict=True)


@pytest.mark.parametrize(
    ("column", "array"),
    [
        (arrow.array([1, 2, 1]).dictionary_encode(), np.array([1, 2, 1])),
        (arrow.array([1.5], arrow.float16()), np.array([1.5], np.float16)),
        (
            arrow.array([[[1, 2], [3, 4]]], arrow.list_(arrow.list_(arrow.int8()))),
            np.array([[[1, 2], [3, 4]]], np.int8),
        ),
        (arrow.array([], arrow.int32()), np.array([], np.int32)),
    ],
    ids=["dictionary", "half", "lists of lists", "no rows"],
)
def test_a_column_keeps_its_type(column: Any, array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(target=column))
    found = files.read(tmp_path / "a.parquet")
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["target"], array, strict=True)


def test_a_column_of_words_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(name=["x"]))
    with pytest.raises(DtypeMismatch, match=r"column 'name' is of string in .*a\.parquet; convert it"):
        files.read(tmp_path / "a.parquet")


def test_without_pyarrow_a_parquet_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.files.opening.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(parquet(target=LABELS))
    with pytest.raises(MalformedBody, match=r"it is a Parquet table.*install pyarrow to read it as it is, or"):
        files.read(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".csv", ".parquet"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_rows_are_taken_a_few_at_a_time(suffix: str, step: int, tmp_path: Path) -> None:
    """Whatever the kind, whatever the number: the pieces are the array; a packed table has many row groups."""
    array = np.random.default_rng(0).standard_normal((1000, 3))
    path = tmp_path / f"prediction{suffix}"
    if suffix == ".csv":
        np.savetxt(path, array, delimiter=",", fmt="%.17g")
    elif suffix == ".parquet":
        table = arrow.table({"prediction": arrow.array(list(array), arrow.list_(arrow.float64()))})
        arrow.parquet.write_table(table, path, row_group_size=64)
    else:
        files.write(path, {"prediction": array})
    source = files.Source("a", {"prediction" if suffix in (".npy", ".csv") else "": path})
    with ExitStack() as stack:
        column = source.open(stack)["prediction"]
        assert (column.shape, column.nbytes) == (array.shape, array.nbytes)
        pieces = [column.take(min(step, 1000 - begin)) for begin in range(0, 1000, step)]
    assert all(len(piece) <= step for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), array, strict=True)


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    array = np.zeros((1 << 18, 8))
    for path in (tmp_path / "prediction.npy", tmp_path / "a.npz", tmp_path / "a.safetensors"):
        files.write(path, {"prediction": array})
    del array
    for path in tmp_path.iterdir():
        tracemalloc.start()
        try:
            with ExitStack() as stack:
                column = next(iter(opened(path, stack).values()))
                for _ in range(1 << 8):
                    column.take(1 << 10)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 21, path


def test_a_name_that_is_no_text_is_told_in_print(tmp_path: Path, target: Path) -> None:
    for name in (b"bad\xff.npz", b"red\x1b[31m.npz"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(b"x")
    result = lossd("evaluate", "--batch", tmp_path, "--loss", "mse", "--json")
    assert result.exit_code == 1, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["file"] for row in rows[:-1]} == {"bad\\xff.npz", "red\\x1b[31m.npz", "target"} or len(rows) == 4
    assert "\x1b" not in lossd("evaluate", "--batch", tmp_path, "--loss", "mse").output


def test_bad_files_are_rows_and_the_rest_is_evaluated(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", prediction=SCORES, target=LABELS)
    expected = {}
    for index, (name, (make, pattern)) in enumerate(FOREIGN.items()):
        suffix = name[name.rindex(".") :]
        if suffix in (".npz", ".safetensors"):
            (tmp_path / f"{index}{suffix}").write_bytes(make())
            expected[f"{index}{suffix}"] = pattern
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "gone.npz").symlink_to(tmp_path / "nowhere.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    (tmp_path / "9_prediction.npy").write_bytes(b"")
    expected |= {"folder.npz": "is a directory", "pipe.npz": "is a pipe", "gone.npz": "No such file", "9": "is empty"}
    expected |= {"loop.npz": "symbolic links"}
    for left_out in ("model.pt", "notes.md"):
        (tmp_path / left_out).write_bytes(b"x")
    result = lossd("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--json")
    assert result.exit_code == 1, result.output
    *rows, last = map(json.loads, result.stdout.splitlines())
    details = {row["file"]: row["error"]["detail"] for row in rows if "error" in row}
    assert details.keys() == expected.keys()
    for name, words in expected.items():
        assert re.search(words, details[name]), details[name]
    alone = json.loads(lossd("evaluate", tmp_path / "good.npz", "--loss", "cross_entropy", "--json").stdout)
    assert last["summary"]["mean_loss"] == alone["loss"]
    assert "left out, as their kind or name is not that of an input: model.pt, notes.md" in result.stderr


def test_tables_are_evaluated_beside_arrays(tmp_path: Path) -> None:
    """Results of an earlier run, which are a .csv file too, are no input."""
    np.savetxt(tmp_path / "1_prediction.csv", SCORES, delimiter=",")
    np.savetxt(tmp_path / "1_target.csv", LABELS, fmt="%d")
    np.save(tmp_path / "2_prediction.npy", SCORES)
    np.savetxt(tmp_path / "2_target.csv", LABELS, fmt="%d")
    (tmp_path / "results.csv").write_text("file,loss\n1,0.5\n")
    result = lossd("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--json")
    assert result.exit_code == 0, result.output
    *rows, last = map(json.loads, result.stdout.splitlines())
    np.savez(tmp_path / "whole.npz", prediction=SCORES, target=LABELS)
    whole = json.loads(lossd("evaluate", tmp_path / "whole.npz", "--loss", "cross_entropy", "--json").stdout)
    assert {row["file"]: row["loss"] for row in rows} == {
        name: pytest.approx(whole["loss"], rel=1e-6) for name in ("1", "2")
    }
    assert last["summary"]["files"] == 2
    assert result.stderr.endswith(": results.csv\n")


def test_an_input_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "1_prediction.npy", SCORES)
    np.savetxt(tmp_path / "1_prediction.csv", SCORES, delimiter=",")
    np.save(tmp_path / "1_target.npy", LABELS)
    result = lossd("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--json")
    assert result.exit_code == 1
    row, _ = map(json.loads, result.stdout.splitlines())
    assert row["error"]["detail"] == "1_prediction.npy is a second file of one input; remove one of them"


@pytest.mark.parametrize("batch", [False, True])
def test_the_names_in_a_file_are_told_where_the_wanted_one_is_missing(batch: bool, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", SCORES, LABELS)
    which = ["--batch", tmp_path] if batch else [tmp_path / "a.npz"]
    result = lossd("evaluate", *which, "--loss", "cross_entropy")
    assert result.exit_code == 1
    assert "needs the input prediction" in result.output
    assert "you sent 'arr_0', 'arr_1'" in result.output


@pytest.mark.parametrize("option", ["--output", "--gradient-out", "--plot"])
def test_a_place_where_nothing_can_be_written_is_a_sentence(option: str, tmp_path: Path, target: Path) -> None:
    np.save(tmp_path / "prediction.npy", SCORES)
    suffix = {"--output": "csv", "--gradient-out": "npy", "--plot": "svg"}[option]
    place = tmp_path / "nowhere" / f"a.{suffix}"
    result = lossd("evaluate", tmp_path / "prediction.npy", target, "--loss", "cross_entropy", option, place)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert re.search(f"{re.escape(str(place))}.*(No such file|does not exist)", result.stderr, re.DOTALL)


@pytest.mark.parametrize("command", [["losses", "qqq"], ["curve", "qqq"], ["evaluate", "--loss", "qqq"]])
def test_the_command_line_says_which_command_lists_the_losses(command: list[str]) -> None:
    result = lossd(*command)
    assert result.exit_code == 1
    assert "lossd losses lists them all" in result.stderr
    assert "GET" not in result.stderr


CLASSES = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 3, 3]])


def gray(bits: int) -> bytes:
    """A gray image of so many bits, as no colours need Pillow to write it."""
    if bits == 16:
        return png(CLASSES.astype(np.uint16) * 300)
    if bits == 1:
        return png(CLASSES > 1)
    return png(CLASSES.astype(np.uint8))


def packed(bits: int, kind: int) -> bytes:
    """A PNG image of ``CLASSES`` in 2 or 4 bits a pixel, written by hand; ``kind`` is 0, gray, or 3, of a palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def row(classes: np.ndarray) -> bytes:
        number = 0
        for label in classes.tolist():
            number = number << bits | label
        return b"\0" + number.to_bytes(len(classes) * bits // 8, "big")

    height, width = CLASSES.shape
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3 << bits)) if kind == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(map(row, CLASSES))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + pixels + chunk(b"IEND", b"")


def of_palette() -> bytes:
    image = Image.fromarray(CLASSES.astype(np.uint8), "L")
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90])
    file = io.BytesIO()
    image.save(file, "png", bits=8)
    return file.getvalue()


LABEL_MAPS: dict[str, tuple[Callable[[], bytes], np.ndarray, type]] = {
    "8 bits": (lambda: gray(8), CLASSES, np.uint8),
    "16 bits": (lambda: gray(16), CLASSES * 300, np.int32),
    "1 bit": (lambda: gray(1), CLASSES > 1, np.uint8),
    "2 bits": (lambda: packed(2, 0), CLASSES, np.uint8),
    "4 bits": (lambda: packed(4, 0), CLASSES, np.uint8),
    "palette": (of_palette, CLASSES, np.uint8),
    "palette of 2 bits": (lambda: packed(2, 3), CLASSES, np.uint8),
    "palette of 4 bits": (lambda: packed(4, 3), CLASSES, np.uint8),
}


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_a_label_map_has_the_classes_of_its_pixels(tmp_path: Path, name: str) -> None:
    make, classes, dtype = LABEL_MAPS[name]
    (tmp_path / "target.png").write_bytes(make())
    found = files.read(tmp_path / "target.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, classes[None])


def test_label_maps_are_scored_as_arrays_are(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder in ("images", "arrays"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        maps = {name: random.integers(0, 4, (1, 5, 6)).astype(np.uint8) for name in ("prediction", "target")}
        for name, classes in maps.items():
            (tmp_path / "images" / f"{index}_{name}.png").write_bytes(png(classes[0]))
            np.save(tmp_path / "arrays" / f"{index}_{name}.npy", classes)
    (tmp_path / "images" / "figure.png").write_bytes(png(np.zeros((2, 3, 3), np.uint8)))
    scores = []
    for folder in ("images", "arrays"):
        line = ["score", str(tmp_path / folder), "--task", "segmentation", "--metric-option", "classes=4", "--json"]
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 0, result.stderr
        scores.append(json.loads(result.stdout))
    assert scores[0]["metrics"] == scores[1]["metrics"]
    assert scores[0]["digest"] == scores[1]["digest"]
