"""The file of an SQLite database: its folder, the lock that keeps a second service out, and whether it is lossd's."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = [
    "APPLICATION_ID",
    "Lock",
    "StoreError",
    "check_file",
    "check_local",
    "create_file",
    "file_system",
    "inode_of",
    "is_of_host",
    "make_folder",
]

APPLICATION_ID = 0x6C6F7364
"""``losd``: what SQLite's header says of a database of lossd."""

MAGIC = b"SQLite format 3\0"
HEADER_BYTES, APPLICATION_ID_AT = 100, 68

NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|ceph|lustre|gpfs|beegfs\w*|glusterfs|orangefs|pvfs2|davfs\d?"
    r"|fuse\.(?:sshfs|glusterfs|ceph\S*|s3fs|goofys|rclone|gcsfuse|davfs\d?|curlftpfs|smbnetfs|juicefs|blobfuse\d?)"
)
"""File systems of other machines, as the kernel names them."""

HOST = re.compile(r"9p|virtiofs|drvfs|vboxsf|prl_fs|vmhgfs|fakeowner|fuse\.(?:grpcfuse|osxfs|vmhgfs-fuse)")
"""Folders of the machine that this virtual machine or sandbox runs on: WSL, gVisor, QEMU, Docker Desktop.

Writes and ``fsync`` reach that machine's disk, and locks hold among the processes here. A file may not be mapped for
writing: Linux's 9p maps none unless it is mounted with a cache, and SQLite then cannot share the index of its log.
"""

MOUNTS = Path("/proc/self/mountinfo")
REMEDY = "set LOSSD_RUNS to a file on a local disk or to postgresql://..."


class StoreError(Exception):
    """The store cannot be opened, or must be opened again: one sentence that says why, and what to do."""


def make_folder(path: Path) -> None:
    """Create the folder of a database, if it is missing, for this user alone.

    Raises:
        StoreError: It cannot be created, or it is on the file system of another machine.
    """
    check_local(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the folder {path.parent}: {error.strerror}; {REMEDY}") from error


def check_local(path: Path) -> None:
    """Check that a database would be on a disk of this machine.

    Raises:
        StoreError: It would be on the file system of another machine.
    """
    existing = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
    kind = file_system(existing)
    if NETWORK.fullmatch(kind):
        raise StoreError(
            f"{path} is on a network file system ({kind}), on which SQLite loses data; set LOSSD_RUNS to a file on a "
            "disk of this machine, or to postgresql://..."
        )


def is_of_host(path: Path) -> bool:
    """Return whether a file is in a folder of the machine that this virtual machine or sandbox runs on."""
    return HOST.fullmatch(file_system(path.parent)) is not None


def file_system(folder: Path, mounts: str | None = None) -> str:
    """Return the kind of file system that a folder is on, as the kernel names it; empty if it is unknown.

    Args:
        folder: An existing folder.
        mounts: The text of ``/proc/self/mountinfo``; by default, this process's.
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return ""
    resolved, kind, longest = folder.resolve(), "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        # A later mount hides an earlier one of the same place.
        if len(point) >= longest and resolved.is_relative_to(point):
            kind, longest = after.split(" ")[0], len(point)
    return kind


class Lock:
    """The lock beside a database: a file that this process holds locked, and that contains its process id.

    The kernel frees it when the process ends, however it ends.

    Args:
        database: The path of the database.

    Raises:
        StoreError: Another process holds it, or the file cannot be written.
    """

    def __init__(self, database: Path) -> None:
        path = database.with_name(f"{database.name}.lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; {REMEDY}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise StoreError(
                f"another lossd (process {holder or 'unknown'}) has opened {database}; stop it, or set LOSSD_RUNS to "
                "another file or to postgresql://..., which several services may share"
            ) from error
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(f"cannot lock {path}: {error.strerror}; {REMEDY}") from error
        with suppress(OSError):  # a full disk: the lock holds, only the process id is missing
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let other processes open the database."""
        os.close(self._descriptor)


def check_file(path: Path) -> bool:
    """Return whether a database must be made: the file is absent or empty. The file is only read.

    Raises:
        StoreError: The file is no database of lossd, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    if not header:
        return True
    if not header.startswith(MAGIC):
        raise StoreError(f"{path} is not an SQLite database; set LOSSD_RUNS to another file")
    if int.from_bytes(header[APPLICATION_ID_AT : APPLICATION_ID_AT + 4], "big") != APPLICATION_ID:
        raise StoreError(f"{path} is the SQLite database of another program; set LOSSD_RUNS to another file")
    return False


def inode_of(path: Path) -> tuple[int, int] | None:
    """Return the device and the number of the file at a path; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def create_file(path: Path) -> None:
    """Create an empty file for this user alone; SQLite gives its other files the same mode.

    Raises:
        StoreError: It cannot be created.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name of the file survives a loss of power too
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}; {REMEDY}") from error
