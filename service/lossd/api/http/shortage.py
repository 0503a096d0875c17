"""What an exception says of the machine: that it has no file, memory, process or thread left."""

from __future__ import annotations

import errno
import os

from lossd_client.errors import Unavailable

__all__ = ["shortage"]

SHORT_OF = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN))
AGAIN_S = 1.0


def shortage(error: BaseException) -> Unavailable | None:
    """The refusal that asks the client to come back, where the machine is short of something; else None."""
    if isinstance(error, OSError) and error.errno in SHORT_OF:
        what = os.strerror(error.errno)
    elif isinstance(error, MemoryError):
        what = os.strerror(errno.ENOMEM)
    elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        what = str(error)
    else:
        return None
    return Unavailable(f"the service's machine is short of what this request takes ({what})", retry_after_s=AGAIN_S)
