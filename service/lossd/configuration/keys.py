"""API keys: make them, and find the name of a key from its digest.

A key is 256 random bits, so a plain SHA-256 reveals nothing about it and needs no salt. A keys file has one key a line,
as ``name:sha256hex``; ``#`` begins a comment. A name may have several keys, to replace one by another.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

__all__ = ["Keys", "fresh_key", "key_line"]

ENVIRONMENT_NAME = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_LINE = re.compile(rf"({NAME.pattern}):([0-9a-f]{{64}})")
_NOBODY = ("", bytes(32))


def fresh_key() -> str:
    """Return a new random key; its prefix lets scanners for leaked secrets recognise it."""
    return f"lossd_{secrets.token_urlsafe(32)}"


def key_line(name: str, key: str) -> str:
    """Return the line of a keys file that accepts this key under this name.

    Raises:
        ValueError: The name has characters that labels and logs do not allow, or is too long.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a key's name: use up to 64 letters, digits, dots, dashes and underscores")
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


class Keys:
    """The accepted keys, by their digests.

    Args:
        file: The keys file.
        key: One more key, named ``default``.

    Raises:
        ValueError, OSError: The file is no keys file.
    """

    def __init__(self, file: Path | None = None, key: str | None = None) -> None:
        self.file = file
        self._from_settings = [] if key is None else [(ENVIRONMENT_NAME, hashlib.sha256(key.encode()).digest())]
        self._secret = secrets.token_bytes(32)
        self.reload()

    def reload(self) -> int:
        """Read the file again, and return the number of keys; if the file is invalid, the old keys stay.

        Raises:
            ValueError, OSError: The file is no keys file.
        """
        entries = [*self._from_settings, *([] if self.file is None else _read(self.file))]
        self._known = {self._tag(digest): (name, digest) for name, digest in entries}
        return len(self._known)

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key; None for an unknown key.

        The look-up uses a tag that depends on a secret of this process, so its time reveals nothing about the digests.
        The comparison of digests takes constant time.
        """
        digest = hashlib.sha256(key).digest()
        name, known = self._known.get(self._tag(digest), _NOBODY)
        return name if hmac.compare_digest(known, digest) else None

    def _tag(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._secret).digest()


def _read(file: Path) -> list[tuple[str, bytes]]:
    """Return the names and digests of a keys file; errors never quote a line, because it may hold a key."""
    entries = []
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file of lines name:sha256hex; make one with: lossd key NAME") from None
    for number, text in enumerate(lines, 1):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} of {file} is not name:sha256hex; make one with: lossd key NAME")
        entries.append((match[1], bytes.fromhex(match[2])))
    if not entries:
        raise ValueError(f"{file} has no key; make one with: lossd key NAME >> {file}")
    return entries
