"""Stores compiled code between starts: one file for each kernel, in a folder for these sources and this processor.

The code is executed. So a file is used only if it is complete, and if only its reader or root can have written it. The
same holds for the folder, in which another user could exchange two kernels. Any other fault of a file or a folder is
treated as if it were absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lossd.configuration.folders import user_cache

__all__ = ["CodeStore"]

log = logging.getLogger("lossd.compiled")

CHECKSUM_BYTES = hashlib.sha256().digest_size
OTHERS_WRITE = 0o022


class CodeStore:
    """The folder of the compiled code.

    Args:
        folder: By default, a folder in ``LOSSD_CACHE_DIR`` or the user's cache, named by all that the code depends on.

    Attributes:
        folder: The folder; None if the user has no cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        caches = os.environ.get("LOSSD_CACHE_DIR")
        home = Path(caches) if caches else user_cache()
        self.folder = folder if folder is not None or home is None else home / f"compiled-{_state()}"
        self._refused: set[Path] = set()

    def __str__(self) -> str:
        return "nowhere" if self.folder is None else str(self.folder)

    def read(self, name: str) -> bytes | None:
        """Return a kernel's code; None if no trusted code is stored."""
        if self.folder is None:
            return None
        path = self._path(name)
        if not self._is_ours():
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & OTHERS_WRITE:
                self._refuse(path, "another user can write it, or has")
                return None
            if not stat.S_ISREG(status.st_mode):
                return None
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read()
        except OSError:
            return None
        finally:
            os.close(descriptor)
        checksum, code = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if hashlib.sha256(code).digest() != checksum:
            self._refuse(path, "it is not whole")
            return None
        return code

    def write(self, name: str, code: bytes) -> bool:
        """Store a kernel's code, and return whether that succeeded."""
        if self.folder is None:
            return False
        partial = None
        try:
            self._make()
            if not self._is_ours():
                return False
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                partial = file.name
                file.write(hashlib.sha256(code).digest() + code)
                os.fchmod(file.fileno(), 0o644)  # in an image, root writes it and another user reads it
            os.replace(partial, self._path(name))
        except OSError:
            if partial is not None:
                with suppress(OSError):
                    os.unlink(partial)
            return False
        return True

    @contextmanager
    def reserved(self) -> Iterator[bool]:
        """Yield whether this process is the one that compiles; without a folder, each process compiles."""
        try:
            if self.folder is None:
                raise FileNotFoundError
            self._make()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.fdopen(os.open(self.folder / "lock", flags, 0o644), "r+b")
        except OSError:
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            except OSError:  # a file system without locks
                yield True
            else:
                yield True

    def _make(self) -> None:
        assert self.folder is not None
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o755, exist_ok=True)  # not writable by others, whatever the umask is

    def _is_ours(self) -> bool:
        """Return whether only this user or root can have written to the folder."""
        assert self.folder is not None
        try:
            status = os.lstat(self.folder)
        except OSError:  # it does not exist
            return True
        if stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.geteuid()) and not status.st_mode & OTHERS_WRITE:
            return True
        self._refuse(self.folder, "another user can write it; remove it, and a new one is made")
        return False

    def _refuse(self, path: Path, why: str) -> None:
        if path not in self._refused:
            log.warning("%s is not used: %s; it is compiled again", path, why)
            self._refused.add(path)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name


def _state() -> str:
    """Return a digest of all that the code depends on: sources, Numba and its variables, Python, and the processor."""
    from importlib.metadata import version

    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    steering = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_"))
    processor = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    what = (version("numba"), version("llvmlite"), sys.implementation.cache_tag, *processor, *steering)
    digest.update("\n".join(map(str, what)).encode())
    return digest.hexdigest()[:16]
