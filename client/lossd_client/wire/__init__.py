"""The wire formats in both directions: bytes to named tensors and back. NumPy only, no I/O.

A tensor on the wire is a :class:`Tensor`: dtype, shape and its row-major little-endian bytes. Codecs never compute with
tensors, and never copy a tensor that they read.
"""

from __future__ import annotations

from lossd_client.wire.tensor import DTYPES, Dtype, Tensor

__all__ = ["DTYPES", "Dtype", "Tensor"]
