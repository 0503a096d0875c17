"""What an exception says of the machine: out of memory, which less work cures, or a broken device, which none does."""

from __future__ import annotations

import re
import warnings

import torch

from lossd_client.errors import TooLarge

__all__ = ["is_broken_device", "is_out_of_memory", "release_memory", "too_large", "unusable"]

# Torch has a class for a device's memory; the CPU's allocators only have words for it.
_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)
_BROKEN_DEVICE = re.compile(r"CUDA error|device-side assert", re.IGNORECASE)
_ATTEMPT = re.compile(r"tried to allocate ([\d.]+ [KMGT]?i?B(?:ytes)?)", re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_broken_device(error: Exception) -> bool:
    """Whether the device fails on everything from now on: an error of CUDA stays until the process ends."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and bool(_BROKEN_DEVICE.search(str(error)))


def unusable(device: torch.device) -> str | None:
    """Why nothing can be computed on a device, in a sentence; None where it works."""
    if device.type != "cuda":
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{device} cannot be used: this build of torch has no CUDA; install one that has, or set device to cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of a driver, the sentence says
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return f"{device} cannot be used: torch finds no CUDA device, or no driver for it; set device to cpu"
    if device.index is not None and device.index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        return f"there is no {device}: the CUDA devices of this machine are {there} (setting device)"
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        return f"{device} cannot be used: {str(error).splitlines()[0]}"
    return None


def release_memory(device: torch.device) -> None:
    """Give back what is cached, so that the next attempt finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def too_large(error: Exception, device: torch.device, model: str, nbytes: int) -> TooLarge:
    """The refusal of a request that does not fit into the device's memory by itself."""
    attempt = _ATTEMPT.search(str(error))
    asked = f"; the last {attempt[1]} it asked for were not there" if attempt else ""
    return TooLarge(
        f"{model} on this request's {nbytes} bytes of tensors needs more memory than {device} has{asked}; send it in "
        "smaller parts, or ask for less of it"
    )
