"""``python -m lossd.compiled.beside``: compile the kernels whose names come in, a line each, while somebody asks.

For each goes out its code, its length first; nothing where it cannot be compiled, and why on standard error.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
import traceback
from queue import SimpleQueue
from threading import Thread

__all__ = ["LENGTH"]

LENGTH = struct.Struct("<Q")

NICE = 5
"""A third of what a process gets that is not nice, where both want all: requests come first, but are slow so long."""


def main() -> None:
    """Until standard input ends, and no moment longer."""
    os.nice(NICE)
    gc.disable()  # the compiler leaves little garbage, and makes many objects among which to look for it
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever else is printed is no answer
        names: SimpleQueue[str] = SimpleQueue()
        Thread(target=_listen, args=(names,), daemon=True).start()

        from lossd.compiled.order import KERNELS

        kernels = {kernel.name: kernel for kernel in KERNELS}
        while True:
            try:
                code = kernels[names.get()].compile()
            except Exception:
                traceback.print_exc()
                code = b""
            answers.write(LENGTH.pack(len(code)) + code)
            answers.flush()


def _listen(names: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        names.put(line.rstrip("\n"))
    os._exit(0)  # whoever asked is gone: half a kernel is of no use


if __name__ == "__main__":
    main()
