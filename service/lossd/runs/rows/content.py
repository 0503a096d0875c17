"""The digest of a batch's content, by which a batch that is sent again is told from other data under its name.

A run of the service says by which hash function its batches are told apart. A new one has ``NEWEST``. One that an
earlier version began keeps its own, because a batch that is sent again must have the digest that it had then. A run
without a service tells its named batches apart by their SHA-256, which its state keeps.

References:
    J. O'Connor, J.-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, BLAKE3: one function, fast everywhere, 2020.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import blake3

from lossd_client.wire import Tensor

__all__ = ["DIGEST_BYTES", "HASHES", "NEWEST", "SHA256", "canonical", "content_digest", "digest_of", "text_of_layout"]

DIGEST_BYTES = 32

SHA256, NEWEST = "sha256", "blake3"

HASHES: Mapping[str, Callable[[bytes], Any]] = {SHA256: hashlib.sha256, NEWEST: blake3.blake3}
"""The hash functions by name. BLAKE3 takes a quarter of the time, with one thread."""

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def content_digest(
    inputs: Mapping[str, Tensor], fields: Mapping[str, Any] | None = None, content_hash: str = SHA256
) -> bytes:
    """Return the digest of a batch: 32 bytes.

    It covers the fields, and each input's name, dtype, shape and bytes. It does not depend on the order of either, nor
    on the wire format, because the inputs are decoded.

    Args:
        inputs: The inputs by name.
        fields: The batch's other fields, of JSON's types.
        content_hash: The name of the hash function.
    """
    layout = text_of_layout({name: (tensor.dtype, tensor.shape) for name, tensor in inputs.items()})
    data = [inputs[name].data for name in sorted(inputs)]
    return digest_of(canonical(fields or {}), layout, data, content_hash)


def text_of_layout(layout: Mapping[str, tuple[str, Sequence[int]]]) -> bytes:
    """Return what the digest covers of the dtypes and the shapes of inputs."""
    return canonical({name: [dtype, *shape] for name, (dtype, shape) in layout.items()})


def canonical(values: Mapping[str, Any]) -> bytes:
    """Return the same JSON for the same values."""
    return CANONICAL.encode(values).encode()


def digest_of(fields: bytes, layout: bytes, data: Iterable[Any], content_hash: str) -> bytes:
    """Return what :func:`content_digest` does.

    Args:
        fields: The canonical JSON of the batch's other fields.
        layout: What :func:`text_of_layout` returns.
        data: The bytes of each input, in the order of the inputs' names.
        content_hash: The name of the hash function.
    """
    head = b"[%b,%b]" % (fields, layout)
    digest = HASHES[content_hash](struct.pack("<Q", len(head)) + head)
    for of_input in data:
        digest.update(of_input)
    found: bytes = digest.digest()
    return found
