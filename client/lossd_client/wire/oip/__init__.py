"""The Open Inference Protocol (KServe V2, Triton's HTTP): a JSON text, then the binary tensors' bytes.

Specification: https://github.com/kserve/open-inference-protocol, with Triton's extension for binary tensors. How long
the JSON is, a header of the message says (:data:`HEADER_LENGTH`); which tensors follow it, and how long each is, the
JSON says. Bare NaN and Infinity tokens are part of this protocol's JSON. Reading is split in two, so that a service can
act on the JSON while the tensors still arrive.
"""

from __future__ import annotations

from lossd_client.wire.oip.elements import read_elements, read_tensor
from lossd_client.wire.oip.messages import (
    BY_DTYPE,
    DATATYPES,
    HEADER_LENGTH,
    MEDIA_TYPE,
    VERSION,
    Datatype,
    Entry,
    Output,
    Request,
    Response,
    Value,
)
from lossd_client.wire.oip.reading import decode_request, decode_response, header_length, read_request
from lossd_client.wire.oip.writing import encode_request, encode_response

__all__ = [
    "BY_DTYPE",
    "DATATYPES",
    "HEADER_LENGTH",
    "MEDIA_TYPE",
    "VERSION",
    "Datatype",
    "Entry",
    "Output",
    "Request",
    "Response",
    "Value",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "header_length",
    "read_elements",
    "read_request",
    "read_tensor",
]
