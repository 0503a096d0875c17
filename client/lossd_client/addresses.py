"""Which address of a service gets the next attempt. Pure policy: no I/O, and the caller tells the time.

The address with the fewest attempts in flight is next. An address that fails rests. A name with several records counts
as one address for each record, and is resolved again from time to time.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address

import httpx

__all__ = ["LOCAL", "Address", "Addresses", "AttemptOutcome", "Name", "socket_path", "split_urls"]

UNIX = "unix://"

LOCAL = "http://localhost"
"""What requests over a Unix socket are addressed to."""

REST_S = 1.0
"""How long an address rests after a failure."""

LONGEST_REST_S = 16.0
"""The longest rest. Rests double as long as an address stays silent, because each try of it costs a time-out."""

RESOLVE_S = 30.0
"""How long the records of a name are used before it is resolved again."""

NEVER = -math.inf
"""When a name that was never resolved is resolved."""


class AttemptOutcome(Enum):
    """What an attempt says about its address."""

    ANSWERED = "it works"
    FAILED = "it refused, broke off, or a proxy answered in its place"
    SILENT = "it took no connection, or moved no byte"
    UNKNOWN = "the attempt ended for another reason"


@dataclass(eq=False, slots=True)
class Address:
    """A place where a service listens.

    Attributes:
        url: The URL without a slash at its end, to which paths are appended; :data:`LOCAL` for a Unix socket.
        name: The URL that the caller gave, if ``url`` has a record in place of its host name; else None.
        in_flight: The attempts that have not ended.
        last_turn: When it was last chosen, as a count of choices.
        rests_until: The end of its rest, in seconds of the caller's clock; 0.0 while it works.
        silences: How many times in a row it was silent.
        socket: The path of the Unix socket behind it; None for a host.
    """

    url: str
    name: str | None = None
    in_flight: int = 0
    last_turn: int = 0
    rests_until: float = 0.0
    silences: int = 0
    socket: str | None = None

    @property
    def caller_url(self) -> str:
        """The URL that the caller gave."""
        return UNIX + self.socket if self.socket is not None else self.name or self.url

    def __str__(self) -> str:
        return self.caller_url if self.name is None else f"{self.name} at {httpx.URL(self.url).host}"


@dataclass(eq=False, slots=True)
class Name:
    """A URL that the caller gave, and its addresses.

    Attributes:
        url: The URL.
        host: Its host name.
        port: Its port.
        addresses: One address for each record if there are several; else one with the name.
        resolve_at: When the name is resolved; infinite if it never is.
    """

    url: str
    host: str
    port: int
    addresses: list[Address] = field(default_factory=list)
    resolve_at: float = math.inf

    def __post_init__(self) -> None:
        path = socket_path(self.url)
        self.addresses = [Address(self.url if path is None else LOCAL, socket=path)]


class Addresses:
    """The addresses of one service. Threads may share it.

    Args:
        urls: One URL or more, as from :func:`split_urls`.
        resolve: Whether names are resolved here. Otherwise whatever connects resolves them.

    Attributes:
        text: The URLs, separated by commas.
        several: Whether there is more than one address now.
    """

    def __init__(self, urls: Sequence[str], *, resolve: bool) -> None:
        self.text = ",".join(urls)
        self._names: list[Name] = []
        for url in urls:
            parsed = httpx.URL(url if socket_path(url) is None else LOCAL)
            name = Name(url, parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))
            if resolve and _has_records(name.host):
                name.resolve_at = NEVER
            self._names.append(name)
        self._lock = threading.Lock()
        self._turn = 0
        self._renew()

    def __len__(self) -> int:
        return len(self._all)

    def _renew(self) -> None:
        found = [address for name in self._names for address in name.addresses]
        random.shuffle(found)  # clients that start together do not begin with the same address
        self._all = found
        self.several = len(found) > 1
        self._resolve_at = min(name.resolve_at for name in self._names)

    def choose(self, now: float, tried: Collection[Address] = ()) -> Address:
        """Return the address of the next attempt, which is in flight from now on.

        It is one that was not tried, if there is one. A resting address is chosen only if all others rest too.
        """
        if not self.several:
            return self._all[0]
        with self._lock:
            candidates = [address for address in self._all if address not in tried] or self._all
            awake = [address for address in candidates if address.rests_until <= now]
            if awake:
                chosen = min(awake, key=lambda address: (address.in_flight, address.last_turn))
            else:
                chosen = min(candidates, key=lambda address: address.rests_until)
            if chosen.rests_until:
                chosen.rests_until = now + REST_S  # one attempt finds out; the others wait for its outcome
            self._turn += 1
            chosen.last_turn = self._turn
            chosen.in_flight += 1
            return chosen

    def release(self, address: Address, outcome: AttemptOutcome, now: float) -> None:
        """Note how an attempt ended."""
        with self._lock:
            address.in_flight = max(0, address.in_flight - 1)
            if outcome is AttemptOutcome.ANSWERED:
                address.rests_until, address.silences = 0.0, 0
            elif outcome is not AttemptOutcome.UNKNOWN:
                silent = outcome is AttemptOutcome.SILENT
                rest_s = min(LONGEST_REST_S, REST_S * 2.0 ** min(address.silences, 10)) if silent else REST_S
                address.rests_until = now + rest_s
                address.silences = address.silences + 1 if silent else 0
                self._resolve_soon(address, now)

    def another(self, now: float, tried: Collection[Address]) -> bool:
        """Return whether an attempt at an address that was not tried makes sense now."""
        candidates = [address for address in self._all if address not in tried]
        resting = all(address.rests_until > now for address in self._all)
        return any(resting or address.rests_until <= now for address in candidates)

    def name_to_resolve(self, now: float) -> Name | None:
        """Return a name that the caller resolves now.

        Each caller resolves a name that never was; later one caller does, and the others use the known records.
        """
        if now < self._resolve_at:
            return None
        with self._lock:
            name = next((name for name in self._names if name.resolve_at <= now), None)
            if name is not None and name.resolve_at > NEVER:
                self._resolve_at_again(name, now)
            return name

    def resolved(self, name: Name, records: Collection[str], now: float) -> None:
        """Take over the records of a name: IP addresses. Addresses that stay keep their state.

        Args:
            name: The name.
            records: Its records; none if it cannot be resolved now, and the known ones are kept.
            now: The time.
        """
        with self._lock:
            self._resolve_at_again(name, now)
        if not records:
            return
        url = httpx.URL(name.url)
        urls = (
            {str(url.copy_with(host=record)).rstrip("/"): name.url for record in dict.fromkeys(records)}
            if len(set(records)) > 1
            else {name.url: None}
        )
        with self._lock:
            known = {address.url: address for address in name.addresses}
            if known.keys() != urls.keys():
                name.addresses = [known.get(url) or Address(url, name_url) for url, name_url in urls.items()]
                self._renew()

    def _resolve_at_again(self, name: Name, now: float) -> None:
        name.resolve_at = now + RESOLVE_S
        self._resolve_at = min(name.resolve_at for name in self._names)

    def _resolve_soon(self, address: Address, now: float) -> None:
        """Resolve the name of an address that failed again, but not more often than once in a rest."""
        for name in self._names:
            if address in name.addresses and NEVER < name.resolve_at < math.inf:
                name.resolve_at = min(name.resolve_at, max(now, name.resolve_at - RESOLVE_S + REST_S))
                self._resolve_at = min(self._resolve_at, name.resolve_at)


def split_urls(url: str | Sequence[str]) -> list[str]:
    """Return the URLs of a service's addresses, without the slash at their ends.

    Args:
        url: One URL, several separated by commas, or a sequence of URLs.

    Raises:
        ValueError: A URL is no address of HTTP or of a Unix socket, there is none, they differ in their scheme, or a
            Unix socket is not the only one.
    """
    urls = [part.strip() for part in url.split(",")] if isinstance(url, str) else list(url)
    for each in urls:
        _check(each)
    if not urls:
        raise ValueError("a service has at least one address, as in http://127.0.0.1:8000")
    if len({httpx.URL(each).scheme for each in urls}) > 1:
        raise ValueError(f"the addresses {', '.join(urls)} differ in their scheme; use http:// or https:// for all")
    found = list(dict.fromkeys(each.rstrip("/") for each in urls))
    if len(found) > 1 and socket_path(found[0]) is not None:
        raise ValueError(f"{found[0]!r} is a Unix socket, which can only be a service's one address")
    return found


def socket_path(url: str) -> str | None:
    """Return the path of the Unix socket that a URL names, as in ``unix:///run/lossd.sock``; None if it names none."""
    return url[len(UNIX) :] if url.startswith(UNIX) else None


def _check(url: str) -> None:
    path = socket_path(url)
    if path is not None:
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(f"{url!r} is not a Unix socket; give its whole path, as in unix:///run/lossd.sock")
        return
    if not url.lower().startswith(("http://", "https://")):
        remedy = f", as in http://{url}" if url and "://" not in url else ""
        raise ValueError(f"{url!r} is not an address; it must start with http:// or https://{remedy}")
    try:
        host, port = httpx.URL(url).host, httpx.URL(url).port
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{url!r} is not an address: {error}") from None
    if not host or any(map(str.isspace, url)) or not 0 < (port or 80) < 65536:
        raise ValueError(f"{url!r} is not an address; it must be http://host:port, with a port from 1 to 65535")


def _has_records(host: str) -> bool:
    """Return whether a host is a name whose records may be different machines; RFC 6761: localhost is this one."""
    try:
        ip_address(host)
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")
    return False
