"""Checks before the service starts; each fault is one sentence.

Unreadable files, a key that does not fit its certificate, and unknown variables would otherwise appear later in a
library's words, or never, while a supervisor restarts the process again and again.
"""

from __future__ import annotations

import re
import ssl
import zipfile
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lossd.configuration.keys import Keys
from lossd.configuration.settings import LINK, SECRETS, Settings

__all__ = ["StartError", "check_needs", "check_variables", "load_certificate", "sentence", "variable"]

PREFIX = "LOSSD_"
PICKLE = b"\x80\x02"

# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables: pods get the variables
# NAME_SERVICE_HOST, NAME_SERVICE_PORT, NAME_PORT and so on for every Service of their namespace.
_LINKS = (
    (re.compile(r"\w*SERVICE_HOST|\w*PORT_\d+_(TCP|UDP|SCTP)_ADDR"), re.compile(r"[0-9A-Fa-f.:]+")),
    (re.compile(r"\w*SERVICE_PORT(_\w+)?|\w*PORT_\d+_(TCP|UDP|SCTP)_PORT"), re.compile(r"\d+")),
    (re.compile(r"\w*PORT_\d+_(TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"\w*PORT(_\d+_(TCP|UDP|SCTP))?"), re.compile(rf"{LINK.pattern}.*")),
)


class StartError(Exception):
    """The service cannot start; one sentence says why and what to do."""


def variable(setting: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + setting.upper()


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """Check that every variable with the settings' prefix is a setting.

    Returns:
        The variables that Kubernetes sets for a Service, which are no settings.

    Raises:
        StartError: A variable is unknown, such as a misspelt one.
    """
    known = {variable(name) for name in Settings.model_fields}
    links, unknown = [], []
    for name, value in environment.items():
        upper = name.upper()
        if not upper.startswith(PREFIX):
            continue
        rest = upper.removeprefix(PREFIX)
        if any(names.fullmatch(rest) and values.fullmatch(value) for names, values in _LINKS):
            links.append(name)
        elif upper not in known:
            near = get_close_matches(rest, [each.removeprefix(PREFIX) for each in known], 1)
            unknown.append(f"{name} is not a setting" + (f", did you mean {PREFIX}{near[0]}?" if near else ""))
    if unknown:
        raise StartError(f"{'; '.join(sorted(unknown))} (lossd serve --help lists the settings; unset the others)")
    return sorted(links)


_PLAIN = {
    "byte_size": "a size in bytes is expected, such as 64MiB",
    "byte_size_unit": "a size in bytes is expected, such as 64MiB",
    "greater_than_equal": "at least {ge} is expected",
    "less_than_equal": "at most {le} is expected",
    "path_not_file": "a file is expected",
    "int_parsing": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "bool_parsing": "true or false is expected",
}


def sentence(fault: Any, source: Callable[[str], str]) -> str:
    """Return a fault of Pydantic as a sentence.

    Args:
        fault: One of ``ValidationError.errors()``.
        source: Returns where a setting was given, such as the option.
    """
    message = _PLAIN.get(fault["type"], fault["msg"].removeprefix("Value error, ")).format_map(fault.get("ctx", {}))
    if not fault["loc"]:  # a fault of several settings together
        return str(message)
    name = str(fault["loc"][0])
    complete = name in SECRETS or repr(fault["input"]) in message
    return f"{source(name)}: {message}" if complete else f"{source(name)}: {message}, found {fault['input']!r}"


def check_needs(settings: Settings) -> None:
    """Check the files that the settings name, and that required packages are installed.

    Raises:
        StartError: A file is invalid, or a package is missing.
    """
    if settings.tracing and not (_installed("opentelemetry.sdk") and _installed("opentelemetry.exporter.otlp")):
        raise StartError(f"{variable('tracing')} needs OpenTelemetry: pip install 'lossd[otel]'")
    if settings.runs is not None and "://" in settings.runs.get_secret_value() and not _installed("psycopg"):
        raise StartError(f"{variable('runs')} needs a driver of PostgreSQL: pip install 'lossd[postgres]'")
    if settings.api_keys_file is not None:
        try:
            Keys(settings.api_keys_file)
        except (OSError, ValueError) as error:
            raise StartError(_reason("api_keys_file", error)) from None
    if settings.tls_cert is not None:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    if settings.tls_client_ca is not None:
        _check_authorities(settings.tls_client_ca)
    if settings.perceptual_weights is not None:
        _check_weights(settings.perceptual_weights)
    if settings.cache_dir is not None and settings.cache_dir.exists() and not settings.cache_dir.is_dir():
        raise StartError(f"{variable('cache_dir')}: {settings.cache_dir} is not a directory")


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Load the certificate and its key into a context.

    Raises:
        StartError: A file is unreadable, or the two are not a certificate and its key.
    """
    cert, key = settings.tls_cert, settings.tls_key or settings.tls_cert
    assert cert is not None
    assert key is not None
    cert_text, key_text = _text("tls_cert", cert), _text("tls_key" if settings.tls_key else "tls_cert", key)
    if "-----BEGIN CERTIFICATE-----" not in cert_text:
        raise StartError(f"{variable('tls_cert')}: {cert} holds no certificate in PEM, -----BEGIN CERTIFICATE-----")
    if "PRIVATE KEY-----" not in key_text:
        remedy = "" if settings.tls_key else f"; if it is in a file of its own, set {variable('tls_key')} to that file"
        raise StartError(f"{variable('tls_key')}: {key} holds no private key in PEM{remedy}")
    secret = settings.tls_key_password
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(cert, settings.tls_key, secret.get_secret_value() if secret else "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise StartError(f"the private key in {key} is not that of the certificate in {cert}") from None
        if "ENCRYPTED" in key_text:
            state = "does not decrypt" if secret else "is not set, but is needed to decrypt"
            raise StartError(f"{variable('tls_key_password')} {state} the private key in {key}") from None
        raise StartError(f"the certificate in {cert} and the private key in {key} cannot be used: {error}") from None


def _check_authorities(path: Path) -> None:
    name = "tls_client_ca"
    _text(name, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"{variable(name)}: {path} holds no certificates in PEM: {error}") from None


def _check_weights(path: Path) -> None:
    """Check what is visible without torch; the worker checks the layers at the first request."""
    name = "perceptual_weights"
    try:
        with path.open("rb") as file:
            head = file.read(9)
        whole = zipfile.is_zipfile(path) or head[:2] == PICKLE  # torch's format before 1.6, as torchvision's
    except OSError as error:
        raise StartError(_reason(name, error)) from None
    if path.suffix == ".safetensors":
        whole = len(head) == 9 and head[8:] == b"{"
    if not whole:
        raise StartError(f"{variable(name)}: {path} holds no weights; save them with torch (.pth) or as .safetensors")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing too
        return False


def _text(setting: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("latin-1")
    except OSError as error:
        raise StartError(_reason(setting, error)) from None


def _reason(setting: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{variable(setting)}: {error.filename} cannot be read: {error.strerror}"
    return f"{variable(setting)}: {error}"
