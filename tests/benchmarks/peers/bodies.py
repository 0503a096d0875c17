"""The bytes a peer reads and writes: the safetensors file that lossd is sent, and one such file back."""

from __future__ import annotations

import struct
import warnings

import job
import orjson
import torch

DTYPES = {"F32": torch.float32, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}

warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes to a request


def read(body: bytes | bytearray) -> job.Request:
    """The request in a body, whose memory its tensors share."""
    (length,) = struct.unpack_from("<Q", body)
    begin = 8 + length
    header = orjson.loads(memoryview(body)[8:begin])
    loss = orjson.loads(header["__metadata__"]["request"])["loss"]

    def tensor(name: str) -> torch.Tensor:
        entry = header[name]
        first, last = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(body, dtype=dtype, count=(last - first) // dtype.itemsize, offset=begin + first)
        return flat.view(entry["shape"])

    name = loss["name"]
    parameter, default = job.PARAMETERS.get(name, ("", 0.0))
    return job.Request(name, loss.get(parameter, default), tensor("prediction"), tensor("target"))


def write(answer: job.Answer) -> bytes:
    """The answer as a body, its numbers in the metadata."""
    header: dict[str, object] = {
        "__metadata__": {"result": orjson.dumps({"loss": answer.loss, "metrics": answer.metrics}).decode()}
    }
    pieces: list[bytes | memoryview] = []
    begin = 0
    for name, tensor in (("gradient.prediction", answer.gradient), ("confusion_matrix", answer.confusion)):
        if tensor is None:
            continue
        data = memoryview(tensor.contiguous().view(-1).numpy()).cast("B")
        end = begin + len(data)
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        pieces.append(data)
        begin = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) & 7)
    return b"".join((struct.pack("<Q", len(text)), text, *pieces))
