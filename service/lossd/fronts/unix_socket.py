"""The Unix socket that clients on this machine may use instead of the port."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from lossd.configuration.preflight import StartError
from lossd.fronts.port import BACKLOG

__all__ = ["UnixSocket"]

LONGEST = 107
"""The most bytes of a socket's path, on Linux."""


class UnixSocket:
    """A listening Unix socket, and the file by which clients find it.

    A killed service leaves its file. The file is replaced if nobody listens on it.

    Args:
        path: The file.
        mode: Its permissions; connecting takes the permission to write.

    Attributes:
        bound: The socket.

    Raises:
        StartError: Why it cannot listen there.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path.absolute()
        if len(os.fsencode(self._path)) > LONGEST:
            raise StartError(f"the path of the Unix socket {self._path} is longer than {LONGEST} bytes (setting uds)")
        self.bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            mask = os.umask(0o777)  # nobody connects before the permissions are set
            try:
                self.bound.bind(str(self._path))
            finally:
                os.umask(mask)
            self._identity = self._found()
            self.bound.listen(BACKLOG)
            self._path.chmod(mode)
        except OSError as error:
            self.bound.close()
            raise StartError(f"cannot listen on the Unix socket {self._path} (setting uds): {_reason(error)}") from None
        except StartError:
            self.bound.close()
            raise

    def remove(self) -> None:
        """Remove the file, unless another service has replaced it. Accepted connections stay open."""
        with suppress(OSError):
            if self._found() == self._identity:
                self._path.unlink()

    def close(self) -> None:
        """Remove the file, and stop listening."""
        self.remove()
        self.bound.close()

    def _found(self) -> tuple[int, int]:
        found = self._path.lstat()
        return found.st_dev, found.st_ino

    def _remove_stale(self) -> None:
        """Remove the file of a service that ended without removing it.

        Raises:
            StartError: It is in use, or no socket.
        """
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise StartError(f"{self._path} is not a socket (setting uds); remove it, or choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a full backlog is in use too
            number = probe.connect_ex(str(self._path))
        if number != errno.ECONNREFUSED:
            if number in (errno.EACCES, errno.EPERM):
                raise PermissionError(number, os.strerror(number))
            raise StartError(
                f"another program listens on the Unix socket {self._path} (setting uds); end that program, or choose "
                "another path"
            )
        self._path.unlink()


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "its folder does not exist; make it, or choose another path"
    return os.strerror(error.errno) if error.errno else str(error)
