"""TLS: the certificate that uvicorn serves with, and its successor, taken without a restart."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any

from lossd.preflight import StartError, load_certificate

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["renew", "uvicorn_options"]

log = logging.getLogger("lossd.api")


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """What ``uvicorn.Config`` takes for TLS; nothing where there is no certificate."""
    if settings.tls_cert is None:
        return {}
    return {
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        "ssl_keyfile_password": _password(settings),
        "ssl_ca_certs": settings.tls_client_ca,
        "ssl_cert_reqs": ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
    }


def renew(context: ssl.SSLContext, settings: Settings) -> None:
    """Read the certificate again, for connections from now on; one that is none changes nothing but the log."""
    try:
        # Tried on another first: a certificate that its key does not fit would be in place when that is noticed.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            load_certificate(target, settings)
    except StartError as error:
        log.error("the certificate stays as it was: %s", error)
    else:
        log.info("the certificate was read again")


def _password(settings: Settings) -> str | None:
    return None if settings.tls_key_password is None else settings.tls_key_password.get_secret_value()
