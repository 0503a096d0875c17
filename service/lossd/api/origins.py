"""Refuses requests that a browser sends for pages of other sites.

A service with API keys is safe, because other sites' pages have no key. A service without keys answers every program
that can reach it; on a machine with a browser, that includes every web page. Three attacks are refused:

- **DNS rebinding.** A page's name resolves to 127.0.0.1, so that the browser takes the service for that page's server.
  ``Host`` has the page's name, which is not a name of the service.
- **Requests across sites**, such as forms and images. Browsers state the page in ``Origin``, or that it belongs to
  another site in ``Sec-Fetch-Site`` (W3C, Fetch Metadata Request Headers).
- **Bodies of forms.** An inference must have a media type that a form cannot send without a preflight. Other requests
  compute nothing and may have any: Triton's C++ client sends libcurl's ``application/x-www-form-urlencoded``.

Other programs than browsers send none of these headers, and are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.access import is_public, send_refusal
from lossd_client.errors import Forbidden, Problem, UnsupportedMediaType
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings

__all__ = ["Origins"]

ANY = "*"
FORMS = (b"text/plain", b"multipart/form-data", b"application/x-www-form-urlencoded")
"""Media types that a page may send to another site without a preflight (Fetch Standard, CORS-safelisted)."""

EVERYWHERE = frozenset(("", "0.0.0.0", "::"))  # a service may listen there, but these are no names
MAX_ACCEPTED = 64  # values of Host in the cache

_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::\d{0,5})?")


class Origins:
    """An application that refuses requests of other sites' pages.

    Args:
        app: The application behind it.
        settings: The service's address, whether it has keys, and further trusted names and pages.
        telemetry: Counts refusals.
    """

    def __init__(self, app: ASGIApp, settings: Settings, telemetry: Telemetry) -> None:
        self.app = app
        self.settings = settings
        self.telemetry = telemetry
        self.has_keys = settings.has_keys
        self.trusted_pages = frozenset(settings.cors_origins.lower().split(",") if settings.cors_origins else ())
        self.names = frozenset((*(settings.allowed_hosts or "").lower().split(","), settings.host.lower())) - EVERYWHERE
        self._accepted_hosts: set[bytes] = set()

    @classmethod
    def wrap(cls, app: ASGIApp, settings: Settings, telemetry: Telemetry) -> ASGIApp:
        """Return the application, guarded if the service has no keys or lists its names."""
        return cls(app, settings, telemetry) if not settings.has_keys or settings.allowed_hosts else app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers or refuses the request."""
        if scope["type"] == "http" and (problem := self._check(scope)) is not None:
            return send_refusal(problem, scope, receive, send, self.settings, self.telemetry)
        return self.app(scope, receive, send)

    def _check(self, scope: Scope) -> Problem | None:
        host = origin = site = kind = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                if value not in self._accepted_hosts and not self._accepts(value):
                    return Forbidden(
                        f"{_shown(value)} is not a name of this service; add further names, such as a proxy's, to "
                        "LOSSD_ALLOWED_HOSTS"
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
            return Forbidden(f"{page} may not use this service; add origins whose pages may to LOSSD_CORS_ORIGINS")
        if kind is not None and scope["method"] == "POST" and _infers(scope["path"]):
            if kind.partition(b";")[0].strip().lower() not in FORMS:
                return None
            return UnsupportedMediaType(
                f"the Content-Type is {_shown(kind)}, as a form of any web page could send it; send application/json"
            )
        return None

    # Names

    def _accepts(self, host: bytes) -> bool:
        if not self._is_trusted(host):
            return False
        if len(self._accepted_hosts) < MAX_ACCEPTED:
            self._accepted_hosts.add(host)
        return True

    def _is_trusted(self, host: bytes) -> bool:
        """Return whether no web page can have this host name."""
        settings = self.settings
        if ANY in self.names or (settings.allowed_hosts is None and not (settings.is_local and not settings.tls_cert)):
            return True  # over TLS, the browser has compared the name with the certificate
        if not (match := _AUTHORITY.fullmatch(host)):
            return not host  # browsers never leave it empty
        name = match[1].decode("latin-1").lower().strip("[]").removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            # Nobody can register a name without a dot, and localhost (RFC 6761) is always this machine.
            return "." not in name or name.endswith(".localhost") or name in self.names
        # An address cannot be rebound. Browsers send no Sec-Fetch-Site to 0.0.0.0, which is this machine.
        return address.is_loopback or name in self.names or not (settings.is_local or address.is_unspecified)

    # Pages

    def _is_foreign(self, scope: Scope, host: bytes | None, origin: bytes | None, site: bytes | None) -> bool:
        if ANY in self.trusted_pages or (origin is not None and origin.decode("latin-1").lower() in self.trusted_pages):
            return False
        if site is not None and site != b"cross-site" and (site != b"same-site" or origin is None):
            return False  # the browser compared the addresses of page and service; a proxy may have changed Host
        if site == b"cross-site" and origin is None and _opens_a_page(scope):
            return False
        return site == b"cross-site" or origin is None or origin.lower().partition(b"://")[2] != (host or b"").lower()


def _infers(path: str) -> bool:
    return path.startswith("/v2/") and path.rstrip("/").endswith("/infer")


def _opens_a_page(scope: Scope) -> bool:
    """Return whether the request opens a public page in a tab, as a link does."""
    headers = dict(scope["headers"])
    return (
        scope["method"] == "GET"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
        and is_public(scope["path"])
    )


def _shown(value: bytes) -> str:
    return quoted(value.decode("latin-1"))
