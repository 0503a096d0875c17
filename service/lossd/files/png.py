"""Label maps in PNG images: one number a pixel, in gray or as an index of a palette."""

from __future__ import annotations

import struct
from typing import IO

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from lossd.files.array_reader import Array, ArrayReader, Unreadable

__all__ = ["label_map"]

HEAD = struct.Struct(">12x4sIIBB")
GRAY, PALETTE = 0, 3
COLORED = {2: "RGB colours", 4: "gray and transparency", 6: "RGB colours and transparency"}
SCALES = {2: 85, 4: 17}
"""What Pillow multiplies gray values of so many bits with, so that they fill 8 bits."""
MOST_PACKED = 1032
"""How many bytes zlib unpacks of one, at most."""


def label_map(file: IO[bytes], size: int, begin: int) -> ArrayReader:
    """Return the classes of an image's pixels, (1, H, W): uint8, or int32 of an image of 16 bits.

    Args:
        file: The image.
        size: Its bytes.
        begin: The first row to read: 0, or 1 for none.

    Raises:
        Unreadable: The image is damaged, or its colours do not stand for classes.
    """
    head = file.read(HEAD.size)
    file.seek(0)
    if len(head) < HEAD.size or head[12:16] != b"IHDR":
        raise Unreadable("it is a PNG image whose header is damaged")
    _, width, height, bits, kind = HEAD.unpack(head)
    if kind in COLORED:
        raise Unreadable(
            f"it is a PNG image of {COLORED[kind]}; a label map has one number for each pixel: write the classes, not "
            "their colours, with PIL.Image.fromarray(classes.astype(numpy.uint8)).save"
        )
    if kind not in (GRAY, PALETTE) or not width * height or width * height * bits > 8 * size * MOST_PACKED:
        raise Unreadable(f"it is a PNG image that is damaged: {size} bytes do not hold its {width} × {height} pixels")

    def load() -> Array:
        pixels = np.asarray(PngImageFile(file))
        if kind == GRAY:
            pixels = pixels // SCALES.get(bits, 1)
        return pixels.astype(np.int32 if bits == 16 else np.uint8)[None]

    return ArrayReader.held((1, height, width), 4 if bits == 16 else 1, load, begin)
