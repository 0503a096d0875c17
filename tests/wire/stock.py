"""What the stock client of Triton sends, byte for byte: its own requests, recorded from a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import ml_dtypes
import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

PREDICTION = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], np.float32)
TARGET = np.array([0, 1])


def infer_inputs(binary: bool = True, **arrays: np.ndarray) -> list[InferInput]:
    inputs = []
    for name, array in arrays.items():
        entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(entry.set_data_from_numpy(array, binary_data=binary))
    return inputs


def _binary(client: InferenceServerClient) -> None:
    client.infer("focal", infer_inputs(prediction=PREDICTION, target=TARGET), parameters={"gamma": 1.5})


def _json(client: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("loss", binary_data=False), InferRequestedOutput("gradient")]
    inputs = infer_inputs(binary=False, prediction=PREDICTION, target=TARGET)
    client.infer("focal", inputs, model_version="1", outputs=outputs, request_id="seven", timeout=5_000_000, priority=1)


def _mixed(client: InferenceServerClient) -> None:
    """Every datatype that has a form of its own: NaN as JSON, BF16 and BYTES as binary."""
    not_finite = infer_inputs(binary=False, a=np.array([np.nan, np.inf, -np.inf, 0.5]))
    binary = infer_inputs(
        b=np.array([1.5, -2.0], ml_dtypes.bfloat16),
        c=np.array(["ab", "", "ü"], np.object_),
        d=np.array([True, False]),
        e=np.zeros((0, 3), np.float16),
        f=np.array([2**16 - 1], np.uint16),
    )
    client.infer("mse", [*not_finite, *binary])


REQUESTS: dict[str, Callable[[InferenceServerClient], None]] = {"binary": _binary, "json": _json, "mixed": _mixed}


def record(name: str) -> bytes:
    """One request as it arrives at a socket, with the host's port as 8000."""
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while True:
                    received.extend(connection.recv(1 << 16))
                    head, found, body = received.partition(b"\r\n\r\n")
                    lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                    if found and len(body) == int(lengths[0].partition(b":")[2]):
                        break
                connection.sendall(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 17\r\n\r\n{"error":"heard"}')

        thread = threading.Thread(target=serve)
        thread.start()
        # All that the client hears is that it was heard.
        with InferenceServerClient(f"127.0.0.1:{port}") as client, suppress(InferenceServerException):
            REQUESTS[name](client)
        thread.join()
    return bytes(received).replace(b":%d\r\n" % port, b":8000\r\n")
