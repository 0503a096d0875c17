"""API keys: who they belong to, without being kept.

A key is 256 random bits, so its plain SHA-256 says nothing about it: a salt would guard against nothing. A keys file
has one key a line, as ``name:sha256hex``; ``#`` begins a comment, and a name may have several keys while they change.
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
    """A new random key; its prefix lets scanners for leaked secrets know it."""
    return f"lossd_{secrets.token_urlsafe(32)}"


def key_line(name: str, key: str) -> str:
    """The line of a keys file that lets this key in under this name.

    Raises:
        ValueError: A name that has no place in labels and logs.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a key: up to 64 letters, digits, dots, dashes and underscores")
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


class Keys:
    """Keys that are let in, by their digests.

    Args:
        file: The keys file.
        key: One more key, named ``default``.

    Raises:
        ValueError, OSError: The file is none.
    """

    def __init__(self, file: Path | None = None, key: str | None = None) -> None:
        self.file = file
        self._own = [] if key is None else [(ENVIRONMENT_NAME, hashlib.sha256(key.encode()).digest())]
        self._secret = secrets.token_bytes(32)
        self.reload()

    def reload(self) -> int:
        """Read the file again, and return how many keys there are; where it is no keys file, all stays as it was.

        Raises:
            ValueError, OSError: The file is none.
        """
        entries = [*self._own, *([] if self.file is None else _read(self.file))]
        self._known = {self._tag(digest): (name, digest) for name, digest in entries}
        return len(self._known)

    def name_of(self, key: bytes) -> str | None:
        """Whose key this is; None where it is nobody's.

        Digests are looked up under a tag that depends on a secret of this process. So how long the look-up takes says
        nothing of the digests, and the comparison takes the same time wherever two of them differ.
        """
        digest = hashlib.sha256(key).digest()
        name, known = self._known.get(self._tag(digest), _NOBODY)
        return name if hmac.compare_digest(known, digest) else None

    def _tag(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._secret).digest()


def _read(file: Path) -> list[tuple[str, bytes]]:
    """The names and digests of a keys file; what is wrong with it is said without quoting it, a key may be in there."""
    entries = []
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text, of lines name:sha256hex; make one with: lossd key NAME") from None
    for number, text in enumerate(lines, 1):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} of {file} is not name:sha256hex; make one with: lossd key NAME")
        entries.append((match[1], bytes.fromhex(match[2])))
    if not entries:
        raise ValueError(f"{file} has no key in it; make one with: lossd key NAME >> {file}")
    return entries
