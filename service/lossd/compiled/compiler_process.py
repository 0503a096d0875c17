"""``python -m lossd.compiled.compiler_process``: compiles the kernels named on standard input, one name a line.

It writes the length and the code of each to standard output. The length is 0 if the kernel cannot be compiled; the
reason is on standard error.
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
"""Lowers the priority: while both compete, this process gets a third of the processor time that a worker gets."""


def main() -> None:
    """Compile until standard input ends."""
    os.nice(NICE)
    gc.disable()  # the compiler makes many objects and little garbage
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # other output must not mix with the code
        names: SimpleQueue[str] = SimpleQueue()
        Thread(target=_listen, args=(names,), daemon=True).start()

        from lossd.compiled.compile_order import KERNELS

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
    os._exit(0)  # the worker has ended; do not finish the kernel


if __name__ == "__main__":
    main()
