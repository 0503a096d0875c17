"""Convert the caller's tensors to the wire and back: NumPy, torch, anything with ``__array__`` or DLPack.

This module never imports torch: a caller who has torch tensors has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd_client.wire import DTYPES, Tensor, json

__all__ = ["Origin", "is_tensor", "plain", "take"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The library and the device of an input; its gradient is returned to them.

    Attributes:
        device: The input's torch device; None for an input that is not a torch tensor.
    """

    device: Any = None

    def receive(self, tensor: Tensor) -> Any:
        """Return the elements as an array over the same memory, or as a torch tensor on ``device``."""
        if self.device is None:
            return tensor.numpy()
        torch = sys.modules["torch"]
        if tensor.dtype == "bfloat16":
            bits = np.frombuffer(tensor.data, DTYPES["int16"].storage)
            flat = torch.from_numpy(bits).view(torch.bfloat16)
        else:
            flat = torch.from_numpy(tensor.numpy())
        return flat.reshape(tensor.shape).to(self.device)


def is_tensor(value: Any) -> bool:
    """Return whether a value is an array of any library; numbers, strings and lists are not."""
    if isinstance(value, np.generic):
        return False
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def take(name: str, value: Any) -> tuple[Tensor, Origin]:
    """Return a value as a wire tensor, without a copy if its memory is contiguous and on the host.

    Args:
        name: The input's name, for errors.
        value: An array, a torch tensor, or a (nested) list of numbers, which becomes float32 or int64.

    Raises:
        TypeError: The value is no tensor, or the wire does not carry its dtype.
        Problem: A list is ragged or holds something else than numbers; the service raises the same error.
    """
    if not is_tensor(value):
        value = plain(value)
        if not isinstance(value, list | int | float):
            raise TypeError(f"{name} must be an array, a tensor or a (nested) list of numbers, not {_kind(value)}")
        return json.tensor_from_json(name, value, floats=True, integers=True)[0], Origin()
    try:
        if _is_torch(value):
            return _take_torch(value), Origin(value.device)
        return Tensor.of(np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)), Origin()
    except (TypeError, BufferError) as error:
        raise TypeError(f"{name} ({_kind(value)}): {error}") from error


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, getattr(torch, "Tensor", ()))


def _take_torch(tensor: Any) -> Tensor:
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise TypeError("a sparse tensor cannot be sent; convert it with to_dense()")
    tensor = tensor.detach().cpu().contiguous().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # NumPy lacks this dtype
        return Tensor.of(tensor.view(torch.int16).numpy(), "bfloat16")
    return Tensor.of(tensor.numpy())


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def plain(value: Any) -> Any:
    """Return a parameter as JSON values: arrays and tuples become lists, NumPy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic) or is_tensor(value):
        return value.tolist() if hasattr(value, "tolist") else np.asarray(value).tolist()
    return value
