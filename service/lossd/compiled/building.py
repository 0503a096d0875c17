"""Makes kernels ready: loads stored code, and compiles the other kernels, the most requested first.

A worker does not compile. A second process does, at low priority, and sends each kernel's code when it is compiled.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from lossd.compiled import compile_order
from lossd.compiled.compiler_process import LENGTH
from lossd.compiled.kernels import Kernel
from lossd.compiled.store import CodeStore

__all__ = ["Compiler", "build", "compile_and_keep", "load_kept", "pending"]

log = logging.getLogger("lossd.compiled")

LOOK_AGAIN_S = 0.25
"""How long to wait between two checks of the store, while another process compiles."""

SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""How long to wait if no process can be started; the wait doubles each time."""

SWITCH_S = 0.0005
"""How long loading may keep the interpreter from the thread that serves requests; Python's default is 5 ms."""


def pending(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Return the kernels that may still become ready."""
    return [kernel for kernel in kernels if not kernel.ready and not kernel.failed]


def load_kept(kernels: Sequence[Kernel], store: CodeStore) -> None:
    """Load the kernels whose code is stored."""
    for kernel in pending(kernels):
        if (code := store.read(kernel.name)) is not None:
            _load(kernel, code)


def build(
    kernels: Sequence[Kernel], store: CodeStore, compile_one: Callable[[Kernel], bytes], changed: Callable[[], None]
) -> None:
    """Make all kernels ready that can be.

    Several processes may call this at a time: one compiles, and the others load what it stores.

    Args:
        kernels: The kernels, the most used first.
        store: Stores their code.
        compile_one: Compiles a kernel. After an OSError, which means that no process or memory is left, it is called
            again. Any other exception means that the kernel cannot be compiled.
        changed: Called after each kernel that became ready or failed.
    """
    begin = time.monotonic()
    uncompiled, wait_s = pending(kernels), 0.0
    log.info("compiling %d of %d passes; their code is kept in %s", len(uncompiled), len(kernels), store)
    while uncompiled:
        time.sleep(wait_s)
        with store.reserved() as mine:
            before = len(uncompiled)
            load_kept(uncompiled, store)
            if not mine:
                wait_s = LOOK_AGAIN_S
            elif uncompiled := pending(uncompiled):
                try:
                    _compile(max(uncompiled, key=lambda kernel: kernel.demand), kernels, store, compile_one)
                    wait_s = 0.0
                except OSError as error:
                    wait_s = min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, 2 * wait_s))
                    log.warning("nothing can be compiled now, which is tried again in %g s: %s", wait_s, error)
        uncompiled = pending(uncompiled)
        if len(uncompiled) < before:
            changed()
    ready = sum(kernel.ready for kernel in kernels)
    log.info("%d of %d passes are ready after %.1f s", ready, len(kernels), time.monotonic() - begin)


def _compile(
    kernel: Kernel, kernels: Sequence[Kernel], store: CodeStore, compile_one: Callable[[Kernel], bytes]
) -> None:
    begin = time.monotonic()
    try:
        code = compile_one(kernel)
        if not kernel.ready and not _load(kernel, code):
            raise RuntimeError("what was compiled cannot be loaded")
    except OSError:
        raise
    except Exception as error:
        kernel.failed = True
        log.warning("%s cannot be compiled: %s; its requests go the general way", kernel.name, error)
        return
    kept = store.write(kernel.name, code)
    ready, where = sum(kernel.ready for kernel in kernels), "" if kept else ", not stored"
    log.info("compiled %s in %.1f s%s: %d of %d", kernel.name, time.monotonic() - begin, where, ready, len(kernels))


def _load(kernel: Kernel, code: bytes) -> bool:
    try:
        with _letting_others_run():
            kernel.load(code)
    except Exception as error:  # wrong bytes must not end the worker
        log.warning("the code of %s cannot be used: %s: %s", kernel.name, type(error).__name__, error)
    return kernel.ready


@contextmanager
def _letting_others_run() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Compiler:
    """Compiles kernels in a second process, which ends when this one does."""

    COMMAND = (sys.executable, "-P", "-m", "lossd.compiled.compiler_process")

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, kernel: Kernel) -> bytes:
        """Return a kernel's code.

        Raises:
            OSError: No process can be started.
            RuntimeError: The kernel cannot be compiled.
        """
        if self._process is None:
            self._process = subprocess.Popen(self.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; the read below finds that
            process.stdin.write(f"{kernel.name}\n".encode())
            process.stdin.flush()
        head = process.stdout.read(LENGTH.size)
        code = process.stdout.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
        if len(head) < LENGTH.size or len(code) < LENGTH.unpack(head)[0]:
            self.close()
            raise RuntimeError(f"the compiler ended with status {process.returncode}")
        if not code:
            raise RuntimeError("the compiler has said why")
        return code

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            with suppress(BrokenPipeError), process:
                process.kill()


def compile_and_keep() -> bool:
    """Compile the kernels whose code is not stored, for this machine's processor; return whether all are stored now."""
    store, kernels = CodeStore(), compile_order.KERNELS
    load_kept(kernels, store)
    if pending(kernels):
        gc.disable()  # see lossd.compiled.compiler_process
        build(kernels, store, Kernel.compile, lambda: None)
    kept = [kernel.name for kernel in kernels if store.read(kernel.name) is not None]
    log.info("the code of %d of %d passes lies in %s", len(kept), len(kernels), store)
    return len(kept) == len(kernels)
