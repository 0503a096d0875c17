"""What an exception says of the machine: out of memory, which less work cures, or a broken device, which none does."""

from __future__ import annotations

import re

import torch

from lossd_client.errors import TooLarge

__all__ = ["is_broken_device", "is_out_of_memory", "release_memory", "too_large"]

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
