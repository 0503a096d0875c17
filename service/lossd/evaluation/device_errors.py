"""Recognise errors of memory, which less work avoids, and of a broken device, which a new process avoids."""

from __future__ import annotations

import re
import warnings
from functools import cache

import torch

from lossd_client.errors import TooLarge

__all__ = ["is_broken_device", "is_out_of_memory", "release_memory", "too_large", "unusable", "usable"]

# torch has an exception class for a device's memory. An error of main memory is recognized by its message.
_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)
_BROKEN_DEVICE = re.compile(r"CUDA error|device-side assert", re.IGNORECASE)
_ATTEMPT = re.compile(r"tried to allocate ([\d.]+ [KMGT]?i?B(?:ytes)?)", re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that there was not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_broken_device(error: Exception) -> bool:
    """Return whether the device fails from now on: a CUDA error stays until the process ends."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and bool(_BROKEN_DEVICE.search(str(error)))


def unusable(device: torch.device) -> str | None:
    """Return why a device cannot be used, as a sentence; None if it works."""
    if device.type != "cuda":
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{device} cannot be used: this build of torch has no CUDA; install one with CUDA, or set device to cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sentence replaces torch's warning about the driver
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return f"{device} cannot be used: torch finds no CUDA device, or no driver for it; set device to cpu"
    if device.index is not None and device.index >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        return f"there is no {device}: the CUDA devices of this machine are {known} (setting device)"
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        return f"{device} cannot be used: {str(error).splitlines()[0]}"
    return None


@cache
def usable(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: There is no such device, or it cannot be used; the sentence says why.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is not a device; write cpu, cuda, or cuda:0") from None
    if (why := unusable(device)) is not None:
        raise ValueError(why)
    return device


def release_memory(device: torch.device) -> None:
    """Free the device's cached memory, so that the next attempt gets it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def too_large(error: Exception, device: torch.device, model: str, nbytes: int) -> TooLarge:
    """Return the error for a request that alone exceeds the device's memory."""
    attempt = _ATTEMPT.search(str(error))
    failed = f"; the last allocation, {attempt[1]}, failed" if attempt else ""
    return TooLarge(
        f"{model} on this request's {nbytes} bytes of tensors needs more memory than {device} has{failed}; send it in "
        "smaller parts, or request fewer outputs"
    )
