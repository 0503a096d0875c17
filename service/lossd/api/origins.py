"""Whose pages may ask: a browser sends requests for every page that is open in it, and says whose page it was.

A service that asks for API keys need not care, since a page of somebody else has none. One without keys trusts whoever
can reach it, and on the machine of a person who also reads the web that is every web page. Three ways in are closed:

- **DNS rebinding.** A page lets its own name point at 127.0.0.1, so that the browser takes the service for that page's
  server. The name is in ``Host``, and is not one that the service goes by.
- **Requests across sites**, such as forms and images. Browsers name the page in ``Origin``, or say in
  ``Sec-Fetch-Site`` (W3C, Fetch Metadata Request Headers) that it is another site's.
- **Bodies of forms.** What a form can send without asking first is no inference. Other requests, which compute nothing,
  may say what they like: Triton's client in C++ sends them as libcurl does, ``application/x-www-form-urlencoded``.

What is no browser sends none of these headers and passes by.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.access import is_page, turn_away
from lossd_client.errors import Forbidden, Problem, UnsupportedMediaType
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings

__all__ = ["Origins"]

ANY = "*"
FORMS = (b"text/plain", b"multipart/form-data", b"application/x-www-form-urlencoded")
"""What the Fetch Standard lets a page send to another site without asking (CORS-safelisted)."""

EVERYWHERE = frozenset(("", "0.0.0.0", "::"))  # no names, though a service may listen there
MAX_KNOWN = 64  # as many values of Host are remembered

_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::\d{0,5})?")


class Origins:
    """Refuses what a browser sends on behalf of somebody else's page.

    Args:
        app: What is behind it.
        settings: Where the service listens, whether it has keys, and which names and pages are trusted beside its own.
        telemetry: Where refusals are counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, telemetry: Telemetry) -> None:
        self.app = app
        self.settings = settings
        self.telemetry = telemetry
        self.has_keys = settings.has_keys
        self.friends = frozenset(settings.cors_origins.lower().split(",") if settings.cors_origins else ())
        self.names = frozenset((*(settings.allowed_hosts or "").lower().split(","), settings.host.lower())) - EVERYWHERE
        self._known: set[bytes] = set()

    @classmethod
    def before(cls, app: ASGIApp, settings: Settings, telemetry: Telemetry) -> ASGIApp:
        """The same application, guarded where that is of use."""
        return cls(app, settings, telemetry) if not settings.has_keys or settings.allowed_hosts else app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on, or refuse it: what is returned does either."""
        if scope["type"] == "http" and (problem := self._judge(scope)) is not None:
            return turn_away(problem, scope, receive, send, self.settings, self.telemetry)
        return self.app(scope, receive, send)

    def _judge(self, scope: Scope) -> Problem | None:
        host = origin = site = kind = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                if value not in self._known and not self._goes_by(value):
                    return Forbidden(
                        f"the service does not go by the name {_shown(value)}; LOSSD_ALLOWED_HOSTS says which other "
                        "names it has, such as that of a proxy"
                    )
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"content-type":
                kind = value
        if self.has_keys:
            return None
        if (origin is not None or site is not None) and self._is_foreign(scope, host, origin, site):
            page = "a page of another site" if origin is None else f"a page of {_shown(origin)}"
            return Forbidden(f"{page} may not ask this service; LOSSD_CORS_ORIGINS says whose pages may")
        if kind is not None and scope["method"] == "POST" and _infers(scope["path"]):
            if kind.partition(b";")[0].strip().lower() not in FORMS:
                return None
            return UnsupportedMediaType(
                f"the Content-Type is {_shown(kind)}, as a form of any web page could send it; send application/json"
            )
        return None

    # Names

    def _goes_by(self, host: bytes) -> bool:
        if not self._is_ours(host):
            return False
        if len(self._known) < MAX_KNOWN:
            self._known.add(host)
        return True

    def _is_ours(self, host: bytes) -> bool:
        """Whether no page of the web can have come from there."""
        settings = self.settings
        if ANY in self.names or (settings.allowed_hosts is None and not (settings.is_local and not settings.tls_cert)):
            return True  # over TLS the browser has compared the name with the certificate
        if not (found := _AUTHORITY.fullmatch(host)):
            return not host  # a browser names one
        name = found[1].decode("latin-1").lower().strip("[]").removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            # Nobody can register a name without a dot, and localhost (RFC 6761) is always this machine.
            return "." not in name or name.endswith(".localhost") or name in self.names
        # There is nothing to rebind in an address. Browsers send no Sec-Fetch-Site to 0.0.0.0, which is this machine.
        return address.is_loopback or name in self.names or not (settings.is_local or address.is_unspecified)

    # Pages

    def _is_foreign(self, scope: Scope, host: bytes | None, origin: bytes | None, site: bytes | None) -> bool:
        if ANY in self.friends or (origin is not None and origin.decode("latin-1").lower() in self.friends):
            return False
        if site is not None and site != b"cross-site" and (site != b"same-site" or origin is None):
            return False  # the browser has compared them, as the page sees them: a proxy may have changed Host
        if site == b"cross-site" and origin is None and _opens_a_page(scope):
            return False
        return site == b"cross-site" or origin is None or origin.lower().partition(b"://")[2] != (host or b"").lower()


def _infers(path: str) -> bool:
    return path.startswith("/v2/") and path.rstrip("/").endswith("/infer")


def _opens_a_page(scope: Scope) -> bool:
    """Whether somebody follows a link to a page that is the same for everybody, in a tab of its own."""
    headers = dict(scope["headers"])
    return (
        scope["method"] == "GET"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
        and is_page(scope["path"])
    )


def _shown(value: bytes) -> str:
    return quoted(value.decode("latin-1"))
