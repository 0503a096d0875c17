"""Recognise files of other kinds by their first bytes, and say how to convert them."""

from __future__ import annotations

import zlib

__all__ = ["HEAD_BYTES", "archive_kind", "kind"]

HEAD_BYTES = 1024
"""How many bytes of a file :func:`kind` needs."""

_SAVE = "save each array with numpy.save, or all by name with numpy.savez"
_PIXELS = f"read its pixels, with Pillow say, and {_SAVE}"
_FRAME = "read it with pandas, and write it with to_csv(index=False), or its to_numpy() with numpy.save"
_UNPACK = "unpack it first"
_OBJECTS = "a file of Python objects, as torch.save writes"
_NEVER = f"lossd loads no objects, because loading them runs their code; {_SAVE}, a tensor as tensor.numpy(force=True)"
_HDF5 = f"read its arrays with h5py, and {_SAVE}"
_VOLUME = f"read it with nibabel, and {_SAVE}, the volume as get_fdata()"

# Offset of the signature, signature, kind of file, remedy. The first match counts.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    *((0, bytes((0x80, version)), _OBJECTS, _NEVER) for version in range(2, 6)),
    (0, b"\x89PNG\r\n", "a PNG image", _PIXELS),
    (0, b"\xff\xd8\xff", "a JPEG image", _PIXELS),
    (0, b"GIF8", "a GIF image", _PIXELS),
    (8, b"WEBP", "a WebP image", _PIXELS),
    (0, b"II*\0", "a TIFF image", _PIXELS),
    (0, b"MM\0*", "a TIFF image", _PIXELS),
    (128, b"DICM", "a DICOM image", f"read its pixels, with pydicom say, and {_SAVE}"),
    (0, b"PAR1", "a Parquet table", f"install pyarrow to read it as it is, or {_FRAME}"),
    (0, b"ARROW1", "an Arrow (Feather) table", _FRAME),
    (0, b"ORC", "an ORC table", _FRAME),
    (0, b"SQLite format 3\0", "an SQLite database", _FRAME),
    (0, b"MATLAB 7.3", "a MATLAB file (7.3, of HDF5)", _HDF5),
    (0, b"MATLAB 5.0", "a MATLAB file", f"read it with scipy.io.loadmat, and {_SAVE}"),
    (0, b"\x89HDF\r\n", "an HDF5 file", _HDF5),
    (0, b"CDF", "a netCDF file", f"read its arrays with scipy.io.netcdf_file, and {_SAVE}"),
    (344, b"n+1\0", "a NIfTI volume", _VOLUME),
    (344, b"ni1\0", "a NIfTI volume", _VOLUME),
    (4, b"n+2\0\r\n", "a NIfTI volume", _VOLUME),
    (0, b"NRRD", "an NRRD volume", f"read it with SimpleITK, and {_SAVE}"),
    (0, b"GGUF", "a GGUF file of a model's weights", _SAVE),
    (0, b"%PDF", "a PDF document", _SAVE),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (0, b"BZh", "packed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
)
_GZIP = b"\x1f\x8b"
_BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff")


def kind(head: bytes, suffix: str) -> tuple[str, str] | None:
    """Return the kind of a file and a remedy; None if the file may be of a known kind.

    Args:
        head: The file's first ``HEAD_BYTES``, or all of a shorter file.
        suffix: The suffix of its name in lower case, such as ``.csv``.
    """
    for start, signature, what, remedy in _SIGNATURES:
        if head.startswith(signature, start):
            return what, remedy
    if head.startswith(_GZIP):
        inner = kind(_unpacked(head), "")
        return (f"{inner[0]}, packed with gzip", inner[1]) if inner else ("packed with gzip", _UNPACK)
    if head.startswith(_BYTE_ORDERS) and suffix == ".csv":
        return "text in UTF-16", "save it as UTF-8"
    if suffix == ".csv" or not _is_text(head):
        return None
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first in (b"{", b"["):
        return "JSON", f"read it with json.load, make arrays of its lists with numpy.array, and {_SAVE}"
    if first == b"<":
        return "XML or HTML", _SAVE
    return "text", "call it .csv if it is a table of numbers with commas between its columns"


def archive_kind(names: list[str]) -> tuple[str, str]:
    """Return the kind of a ZIP archive without arrays and a remedy, given its members' names."""
    bases = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in bases:
        return _OBJECTS, _NEVER
    if "[Content_Types].xml" in bases:
        return "an Office document", "save the sheet as .csv"
    if "model.weights.h5" in bases:
        return "a Keras model", _SAVE
    members = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a ZIP archive without an array, with {members or 'no files'}", f"{_UNPACK}, or {_SAVE}"


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    try:
        head[: -3 if len(head) == HEAD_BYTES else None].decode()  # a character may be cut at its end
    except UnicodeDecodeError:
        return False
    return bool(head)
