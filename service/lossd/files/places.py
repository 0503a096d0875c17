"""Where files lie: in the file systems of this machine, or under a URL that fsspec reads, such as ``s3://``.

fsspec is imported only for a URL. Credentials and endpoints are those that fsspec finds for the protocol.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

__all__ = ["Place", "Remote", "Unlisted", "listed", "parts", "version"]

BLOCK_BYTES = 256 << 10
"""How much more than it is asked for fsspec fetches with a request: a header, or all of a small file."""

_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "created")
"""What file systems call a value that changes with a file's content."""


class Unlisted(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Why the files that a path or a URL names cannot be listed."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file under a URL.

    Attributes:
        url: The URL.
        size: The bytes of the file.
        version: What changes with the file's content, as far as its file system tells.
    """

    url: str
    size: int
    version: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, such as ``.npz``."""
        return PurePosixPath(self.url).suffix

    def open(self) -> IO[bytes]:
        """Return the file, open for reading.

        Raises:
            OSError, ImportError, and what the file system raises.
        """
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.url)
        file: IO[bytes] = system.open(path, "rb", block_size=BLOCK_BYTES)
        return file


Place = Path | Remote
"""A file that may be read."""


def listed(text: str) -> list[Place]:
    """Return the files that a path, a pattern or a URL names; of a directory, those in it, without its subdirectories.

    Raises:
        Unlisted: There are none, or they cannot be listed.
    """
    if "://" in text:
        return list(_remote(text))
    path = Path(text)
    if path.is_dir():
        return list(path.iterdir())
    if path.exists() or path.is_symlink():
        return [path]
    if not glob.has_magic(text):
        raise Unlisted(f"{text} does not exist")
    found: list[Place] = [Path(name) for name in glob.glob(text, recursive=True) if not Path(name).is_dir()]
    if not found:
        raise Unlisted(f"no file matches {text}")
    return found


def parts(place: Place) -> tuple[str, ...]:
    """Return the directories of a file and its name: files are sorted and distinguished by these."""
    return Path(os.path.abspath(place)).parts if isinstance(place, Path) else tuple(place.url.split("/"))


def version(place: Place) -> str:
    """Return a text that changes with a file's content: its size, and its time of change or its tag."""
    if isinstance(place, Remote):
        return f"{place.size} {place.version}"
    try:
        status = place.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote(url: str) -> list[Remote]:
    protocol = url.partition("://")[0]
    if "::" in url:
        raise Unlisted(f"{url} is a chain of URLs, which are not read; name the files by one URL")
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise Unlisted(_missing(protocol, error)) from None
    except ValueError as error:
        raise Unlisted(f"{url} cannot be listed: {error}") from None
    try:
        if glob.has_magic(path):
            found = list(system.glob(path, detail=True).values())
        elif system.isdir(path):
            found = system.ls(path, detail=True)
        else:
            found = [system.info(path)]
    except FileNotFoundError:
        raise Unlisted(f"{url} does not exist") from None
    except Exception as error:  # each file system raises errors of its own
        reason = str(error).strip() or type(error).__name__
        raise Unlisted(
            f"{url} cannot be listed: {reason}; credentials are those that fsspec finds for {protocol}"
        ) from None
    files = [info for info in found if info["type"] == "file"]
    if not files:
        raise Unlisted(f"no file matches {url}" if glob.has_magic(path) else f"{url} holds no files")
    return [Remote(system.unstrip_protocol(info["name"]), info["size"] or 0, _version(info)) for info in files]


def _version(info: Mapping[str, Any]) -> str:
    return " ".join(str(info[name]) for name in _VERSIONS if info.get(name) is not None)


def _missing(protocol: str, error: ImportError) -> str:
    """Return which package a protocol needs."""
    try:
        from fsspec.registry import known_implementations
    except ImportError:
        return f"{protocol}:// needs fsspec, which is not installed: pip install 'lossd[service]'"
    package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    if not package or package in ("fsspec", "pyarrow"):
        return f"{protocol}:// needs a package that is not installed: {error}"
    return f"{protocol}:// needs the package {package}, which is not installed: pip install {package}"
