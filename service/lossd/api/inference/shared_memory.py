"""Triton's extension for system shared memory: tensors in files of ``/dev/shm``, which clients on this machine share.

A region is a part of such a file, registered by name. Its bytes are copied into a slab and out of it by ``preadv`` and
``pwritev``; no file is mapped. So a client that truncates its file gets an error, and one that changes its tensors
during the evaluation changes nothing: they are checked and evaluated in the slab.

All fronts share one table of the registered regions, in an anonymous file. Each front opens a region's file at first
use, and keeps it open until the region is unregistered.
"""

from __future__ import annotations

import fcntl
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import orjson

from lossd_client.errors import Conflict, Forbidden, InvalidRequest, MalformedBody, NotFound, TooLarge
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from starlette.types import Scope

    from lossd.configuration.settings import Settings
    from lossd_client.wire.oip import Place

__all__ = ["Region", "SharedRegions", "check_local"]

FOLDER = "/dev/shm"
LARGEST = 2**62
MAX_NAME = 256
VERSION_BYTES = 8
_FORWARDING = frozenset((b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via"))


def check_local(scope: Scope) -> None:
    """Check that a request comes from this machine: over a Unix socket or a loopback address, through no proxy.

    Raises:
        Forbidden: It does not.
    """
    client = scope.get("client")
    proxied = any(name in _FORWARDING for name, _ in scope["headers"])
    if proxied or not (client is None or _is_loopback(client[0])):
        raise Forbidden("shared memory is for clients on the service's machine, without a proxy between them")


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True, slots=True)
class RegisteredRegion:
    """A registered region.

    Attributes:
        client: The name of the API key that registered it; empty without keys.
        name: Its name, unique among those of the client.
        key: The name of the file, as ``shm_open`` takes it.
        offset: Where it begins in the file, in bytes.
        byte_size: Its size.
        device: The device of the file.
        inode: The file's number there.
    """

    client: str
    name: str
    key: str
    offset: int
    byte_size: int
    device: int
    inode: int

    @property
    def status(self) -> dict[str, Any]:
        """The fields that the protocol has for it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class Region:
    """An open region. Its file is closed when nothing refers to it any more.

    Args:
        record: What was registered.
        descriptor: The open file, which belongs to the region from now on.
    """

    def __init__(self, record: RegisteredRegion, descriptor: int) -> None:
        self._record = record
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, view: memoryview, place: Place) -> None:
        """Fill a view with the bytes at a place.

        Raises:
            InvalidRequest: The place is outside of the region, or the file was truncated.
        """
        self._move(os.preadv, view, place)

    def write(self, view: memoryview, place: Place) -> None:
        """Write a view to the beginning of a place, which is not smaller.

        Raises:
            InvalidRequest: The place is outside of the region, or the file was truncated.
        """
        if os.fstat(self._descriptor).st_size < self._record.offset + place.offset + len(view):
            raise self._truncated(place)  # writing would make the file longer
        self._move(os.pwritev, view, place)

    def span(self, place: Place) -> tuple[tuple[int, int], int, int]:
        """Return the file, the begin and the end of a place, to compare it with others.

        Raises:
            InvalidRequest: The place is outside of the region.
        """
        record = self._record
        if place.offset + place.byte_size > record.byte_size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: {quoted(place.region)}, which has "
                f"{record.byte_size} bytes"
            )
        begin = record.offset + place.offset
        return (record.device, record.inode), begin, begin + place.byte_size

    def _move(self, move: Callable[..., int], view: memoryview, place: Place) -> None:
        _, at, _ = self.span(place)
        while len(view):
            moved = move(self._descriptor, [view], at)
            if not moved:
                raise self._truncated(place)
            view, at = view[moved:], at + moved

    def _truncated(self, place: Place) -> InvalidRequest:
        return InvalidRequest(f"the file of shared memory region {quoted(place.region)} was cut; register it again")


class SharedRegions:
    """The registered regions, of all clients.

    Args:
        settings: The limits.
        table: The descriptor of the table that the fronts share; by default a new one.
    """

    def __init__(self, settings: Settings, table: int | None = None) -> None:
        self._settings = settings
        self._table = os.memfd_create("lossd-regions", os.MFD_CLOEXEC) if table is None else table
        self._version = b""
        self._records: Mapping[tuple[str, str], RegisteredRegion] = {}
        self._open: dict[RegisteredRegion, Region] = {}

    def register(self, client: str, name: str, document: Any) -> None:
        """Register a region.

        Args:
            client: The name of the client's API key.
            name: The region's name.
            document: The body of the request.

        Raises:
            Conflict: The client has a region of that name.
            MalformedBody, InvalidRequest, TooLarge: It cannot be registered.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise MalformedBody(f"the name of a region has 1 to {MAX_NAME} printable characters")
        key, offset, byte_size = _read(document)
        with self._locked():
            records = self._records_of(client)
            if (client, name) in self._records:
                raise Conflict(f"shared memory region {quoted(name)} already in manager; unregister it first")
            most, most_bytes = self._settings.shared_memory_regions, int(self._settings.shared_memory_bytes)
            if len(records) >= most:
                raise TooLarge(f"{most} regions are registered (setting shared_memory_regions); unregister some")
            if sum(record.byte_size for record in records) + byte_size > most_bytes:
                raise TooLarge(
                    f"the regions would have more than {most_bytes} bytes together (setting shared_memory_bytes)"
                )
            descriptor = _opened(key)
            found = os.fstat(descriptor)
            record = RegisteredRegion(client, name, key, offset, byte_size, found.st_dev, found.st_ino)
            region = Region(record, descriptor)
            if not stat.S_ISREG(found.st_mode) or offset + byte_size > found.st_size:
                size = f"; {quoted(key)} has {found.st_size} bytes" if stat.S_ISREG(found.st_mode) else ""
                raise InvalidRequest(f"failed to register shared memory region {quoted(name)}: invalid args{size}")
            self._write([*self._records.values(), record])
            self._open[record] = region

    def unregister(self, client: str, name: str | None) -> None:
        """Unregister a client's region of this name, if there is one; without a name, all of them."""
        with self._locked():
            removed = {record.name for record in self._records_of(client) if name in (None, record.name)}
            self._write([r for r in self._records.values() if r.client != client or r.name not in removed])

    def status(self, client: str, name: str | None) -> list[dict[str, Any]]:
        """Return what the protocol tells of a client's region; without a name, of all of them.

        Raises:
            NotFound: There is none of that name.
        """
        self._refresh()
        if name is not None:
            return [self._record(client, name).status]
        return [record.status for record in self._records_of(client)]

    def find(self, client: str, name: str) -> Region:
        """Return a client's region.

        Raises:
            NotFound: There is none of that name.
            InvalidRequest: Its file has gone, or another one has taken its place.
        """
        self._refresh()
        record = self._record(client, name)
        region = self._open.get(record)
        if region is None:  # another front registered it
            descriptor = _opened(record.key)
            region = Region(record, descriptor)
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != (record.device, record.inode):
                raise InvalidRequest(f"the file of shared memory region {quoted(name)} was replaced; register it again")
            self._open[record] = region
        return region

    def _records_of(self, client: str) -> list[RegisteredRegion]:
        return [record for record in self._records.values() if record.client == client]

    def _record(self, client: str, name: str) -> RegisteredRegion:
        record = self._records.get((client, name))
        if record is None:
            raise NotFound(f"Unable to find system shared memory region: {quoted(name)}; register it first")
        return record

    # The table: a version, then the records as a line of JSON, then what is left of longer ones

    def _refresh(self) -> None:
        """Read the table, if it has changed."""
        if os.pread(self._table, VERSION_BYTES, 0) != self._version:
            with self._locked(fcntl.LOCK_SH):
                pass

    @contextmanager
    def _locked(self, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Hold the table, and know what is in it."""
        fcntl.lockf(self._table, kind)
        try:
            text = os.pread(self._table, os.fstat(self._table).st_size, 0)
            version, text = text[:VERSION_BYTES], text[VERSION_BYTES:].partition(b"\n")[0]
            if version != self._version:
                self._take(version, [RegisteredRegion(**values) for values in orjson.loads(text)])
            yield
        finally:
            fcntl.lockf(self._table, fcntl.LOCK_UN)

    def _write(self, records: Sequence[RegisteredRegion]) -> None:
        number = int.from_bytes(self._version, "little") + 1
        version, text = number.to_bytes(VERSION_BYTES, "little"), orjson.dumps([asdict(record) for record in records])
        os.pwrite(self._table, version + text + b"\n", 0)
        self._take(version, records)

    def _take(self, version: bytes, records: Sequence[RegisteredRegion]) -> None:
        self._version = version
        self._records = {(record.client, record.name): record for record in records}
        kept = set(records)
        self._open = {record: region for record, region in self._open.items() if record in kept}


def _read(document: Any) -> tuple[str, int, int]:
    """Return key, offset and size of a request to register.

    Raises:
        MalformedBody: It is no such request.
    """
    if not isinstance(document, dict) or not {"key", "byte_size"} <= document.keys() <= {"key", "offset", "byte_size"}:
        raise MalformedBody('a region is registered by {"key": ..., "offset": ..., "byte_size": ...}')
    key, offset, byte_size = document["key"], document.get("offset", 0), document["byte_size"]
    if not isinstance(key, str) or not 0 < len(key) <= MAX_NAME:
        raise MalformedBody(f"key must be the name of a file in {FOLDER}, of 1 to {MAX_NAME} characters")
    for name, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
        if type(value) is not int or not least <= value < LARGEST:
            raise MalformedBody(f"{name} must be a whole number of bytes, from {least} on")
    return key, offset, byte_size


def _opened(key: str) -> int:
    """Open a file of shared memory by its key, a name directly in the folder, and no link.

    Raises:
        InvalidRequest: There is no such file, or this process may not read and write it.
    """
    name = key.removeprefix("/")
    try:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise OSError
        folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except (OSError, UnicodeError):
        raise InvalidRequest(
            f"Unable to open shared memory region: {quoted(key)}; it must be a file in {FOLDER} that the service's "
            "user may read and write"
        ) from None
