"""The Open Inference Protocol (KServe V2, Triton's HTTP): a JSON text, then the bytes of the binary tensors.

Specification: https://github.com/kserve/open-inference-protocol, with Triton's extension for binary tensors. An HTTP
header (:data:`HEADER_LENGTH`) gives the length of the JSON text; the JSON text gives the length of each binary tensor.
Bare NaN and Infinity tokens are valid in this protocol's JSON. The JSON can be read before the tensors have arrived.
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
    Place,
    Request,
    Response,
    Value,
)
from lossd_client.wire.oip.reading import decode_request, decode_response, header_length, read_request
from lossd_client.wire.oip.writing import elements, encode_request, encode_response

__all__ = [
    "BY_DTYPE",
    "DATATYPES",
    "HEADER_LENGTH",
    "MEDIA_TYPE",
    "VERSION",
    "Datatype",
    "Entry",
    "Output",
    "Place",
    "Request",
    "Response",
    "Value",
    "decode_request",
    "decode_response",
    "elements",
    "encode_request",
    "encode_response",
    "header_length",
    "read_elements",
    "read_request",
    "read_tensor",
]
