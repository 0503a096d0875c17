"""Recognizes exceptions that mean the machine has no file, memory, process or thread left."""

from __future__ import annotations

import errno
import os

from lossd_client.errors import Unavailable

__all__ = ["shortage"]

SHORT_OF = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN))
RETRY_AFTER_S = 1.0


def shortage(error: BaseException) -> Unavailable | None:
    """Return the refusal, with a time to retry, if the error means that the machine lacks something; else None."""
    if isinstance(error, OSError) and error.errno in SHORT_OF:
        reason = os.strerror(error.errno)
    elif isinstance(error, MemoryError):
        reason = os.strerror(errno.ENOMEM)
    elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        reason = str(error)
    else:
        return None
    return Unavailable(f"the service's machine lacks what this request needs ({reason})", retry_after_s=RETRY_AFTER_S)
