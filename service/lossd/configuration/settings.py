"""Every setting: its name, default, unit and description. The environment variable is ``LOSSD_<NAME>``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, FilePath, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lossd.configuration.machine import cores, memory_bytes

__all__ = ["LINK", "SECRETS", "Settings"]

LINK = re.compile(r"(?:tcp|udp|sctp)://")
"""The value of ``LOSSD_PORT`` that Kubernetes sets for a Service named lossd: its address, which is no setting."""

DEFAULT_PORT = 8000
SMALLEST_BATCH_BYTES = 1 << 16  # a smaller slab would have no room for a row
SMALLEST_PART = 16 << 20
LONGEST_MS = 7 * 24 * 3600 * 1000

Milliseconds = Annotated[int, Field(ge=1, le=LONGEST_MS)]


def _part_of_memory(most: int, part: int) -> ByteSize:
    """Return so many bytes, or a part of the memory limit if that is less."""
    return ByteSize(int(min(most, max(SMALLEST_PART, memory_bytes() / part))))


def _devices(value: str) -> str:
    for device in value.split(","):
        kind, _, index = device.partition(":")
        if not (device == "cpu" or (kind == "cuda" and re.fullmatch(r"[0-9]{0,3}", index) and device != "cuda:")):
            raise ValueError(f"{device!r} is not a device; write cpu, cuda, or cuda:0,cuda:1")
    return value


def _port(value: Any) -> Any:
    return DEFAULT_PORT if isinstance(value, str) and LINK.match(value) else value


def _key(value: SecretStr | None) -> SecretStr | None:
    text = None if value is None else value.get_secret_value()
    if text is not None and (len(text) < 16 or not all("!" <= character <= "~" for character in text)):
        raise ValueError("an API key has 16 or more visible ASCII characters; lossd key NAME makes a good one")
    return value


def _hosts(value: str | None) -> str | None:
    for name in [] if value is None else value.split(","):
        if name != "*" and not re.fullmatch(r"[^\s:/?#@\[\]]+|(?=.*:.*:)[0-9A-Fa-f:.]+", name):
            raise ValueError(f"{name!r} is not a host name; write loss.example, several with commas, or *")
    return value


def _path(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(/[\w.~-]+)*/?", value, re.ASCII):
        raise ValueError(f"{value!r} is not a path; write /loss")
    return (value or "").rstrip("/") or None


def _origins(value: str | None) -> str | None:
    for origin in (value or "*").split(","):
        if origin != "*" and not re.fullmatch(r"https?://[^/?#\s*]+", origin):
            raise ValueError(f"{origin!r} is not an origin; write https://host:port, several with commas, or *")
    return value


def _runs(value: SecretStr | None) -> SecretStr | None:
    scheme, separator, _ = ("" if value is None else value.get_secret_value()).partition("://")
    if separator and scheme not in ("postgresql", "postgres"):
        raise ValueError("runs cannot be kept there; name a file, or postgresql://user@host/database, or write off")
    return value


class Settings(BaseSettings):
    """The service's settings. The command line overrides the environment, which overrides the defaults."""

    model_config = SettingsConfigDict(env_prefix="LOSSD_", extra="ignore", frozen=True, hide_input_in_errors=True)

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; the default is reachable from this machine only. 0.0.0.0 means every IPv4 "
        "address, :: every IPv6 and IPv4 address.",
    )
    port: Annotated[int, BeforeValidator(_port), Field(ge=0, le=65535)] = Field(
        DEFAULT_PORT, description="Port to listen on; 0 picks a free one."
    )
    uds: Path | None = Field(
        None,
        description="Unix socket to listen on in addition to the port, for clients on this machine, such as "
        "unix:///run/lossd.sock. It has no TLS.",
    )
    uds_mode: Annotated[str, Field(pattern="^[0-7]{3}$")] = Field(
        "600", description="Permissions of that socket's file, in octal: 600 for the service's user, 660 for its group."
    )
    device: Annotated[str, AfterValidator(_devices)] = Field(
        "cpu", description="Where losses are computed: cpu, cuda, or cuda:0,cuda:1 for one worker process each."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        max(1, math.ceil(cores()) - 1),
        description="Threads of a CPU worker; by default one less than the cores it may use.",
    )
    compiled: bool = Field(
        True,
        description="Whether a CPU worker compiles the most used losses, unless lossd compile has done so.",
    )
    cache_dir: Path | None = Field(
        None, description="Folder of the compiled code; by default the user's cache, ~/.cache/lossd."
    )
    engine: Literal["process", "inline"] = Field(
        "process", description="Worker processes, or evaluation inside the front (for embedding and tests)."
    )
    fronts: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Processes that accept requests on one port and share the workers. Each gets an equal part of "
        "queue_bytes and cache_bytes; the other limits apply to each of them.",
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        ge=1 << 10,
        description="Largest request body, in bytes (units such as 1GiB are allowed); the default is at "
        "most queue_bytes.",
    )
    max_json_bytes: ByteSize = Field(
        ByteSize(16 << 20),
        ge=1 << 10,
        description="Largest JSON text of a request or an answer, in bytes; binary tensors may be larger.",
    )
    queue_bytes: ByteSize = Field(
        _part_of_memory(4 << 30, 4),
        ge=1 << 10,
        description="Maximum memory of all requests in progress at all fronts, answers and temporaries included, in "
        "bytes; by default at most a quarter of the container's memory.",
    )
    queue_requests: Annotated[int, Field(ge=1)] = Field(8192, description="Maximum number of requests in progress.")
    requests_per_key: Annotated[int, Field(ge=1)] = Field(
        1024, description="Maximum number of requests of one API key in progress."
    )
    batch_bytes: ByteSize = Field(
        ByteSize(8 << 20),
        ge=SMALLEST_BATCH_BYTES,
        le=16 << 30,
        description="Largest batch, in bytes of inputs and answers; a larger request is a batch of its own.",
    )
    stream_bytes: ByteSize = Field(
        ByteSize(1 << 20),
        ge=1 << 10,
        description="Smallest body, in bytes, that is received directly into shared memory.",
    )
    cache_bytes: ByteSize = Field(
        _part_of_memory(1 << 30, 16),
        description="Maximum shared memory kept between requests by all fronts, in bytes; by default at most a "
        "sixteenth of the container's memory.",
    )
    request_timeout_ms: Milliseconds = Field(
        60_000, description="Deadline, in milliseconds, of a request that has no X-Request-Timeout-Ms."
    )
    shared_memory: bool = Field(
        False,
        description="Whether clients on this machine may send tensors by system shared memory over /v2: files of "
        "/dev/shm that the service's user may read and write.",
    )
    shared_memory_regions: Annotated[int, Field(ge=1)] = Field(
        64, description="Maximum number of regions of shared memory that one API key may register."
    )
    shared_memory_bytes: ByteSize = Field(
        ByteSize(8 << 30), ge=1, description="Maximum bytes of all regions of one API key."
    )
    max_work_ms: Milliseconds = Field(
        60_000,
        description="Maximum estimated work of one request, in milliseconds of one core; more is refused.",
    )
    max_timeout_ms: Milliseconds = Field(
        600_000, description="Longest deadline of a request, in milliseconds; longer ones are shortened to it."
    )
    idle_timeout_ms: Milliseconds = Field(
        20_000,
        description="Longest pause within a body or an answer, and longest time for a request's head, in milliseconds.",
    )
    min_body_bytes_per_s: Annotated[int, Field(ge=0)] = Field(
        4096,
        description="Lowest rate of a body, over ten seconds; a slower body is answered 408; 0 for no limit.",
    )
    keep_alive_timeout_ms: Annotated[int, Field(ge=1000, le=LONGEST_MS)] = Field(
        75_000, description="Longest pause between two requests of a connection, in milliseconds."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        4096, description="Maximum number of connections at a time; further ones are answered 503."
    )
    worker_timeout_ms: Milliseconds = Field(
        120_000,
        description="Time after which a worker that has work but no heartbeat is replaced, in milliseconds.",
    )
    poll_us: Annotated[int, Field(ge=0, le=10_000)] = Field(
        2000 if cores() >= 2 else 0,
        description="How long front and worker poll for a message before they sleep, if requests come one by one, in "
        "microseconds. Waking a process takes as long. The default is 0 with fewer than two cores.",
    )
    drain_timeout_ms: Annotated[int, Field(ge=0, le=LONGEST_MS)] = Field(
        30_000, description="Longest wait for requests in progress at shutdown, in milliseconds."
    )
    lame_duck_ms: Annotated[int, Field(ge=0, le=LONGEST_MS)] = Field(
        0,
        description="How long requests are still accepted after SIGTERM, in milliseconds, while /health/ready is "
        "answered 503 and every answer closes its connection; drain_timeout_ms begins after it.",
    )
    api_keys_file: FilePath | None = Field(
        None, description="File of accepted API keys, one name:sha256hex a line (lossd key); read again on SIGHUP."
    )
    api_key: Annotated[SecretStr | None, AfterValidator(_key)] = Field(
        None, description="One accepted API key, for a single client; its name is default."
    )
    metrics_public: bool = Field(False, description="Whether /metrics accepts requests without an API key.")
    tls_cert: FilePath | None = Field(
        None,
        description="Certificate chain (PEM) for HTTPS; read again on SIGHUP. Without one, the service speaks HTTP.",
    )
    tls_key: FilePath | None = Field(
        None, description="The certificate's private key (PEM), if it is in a file of its own."
    )
    tls_key_password: SecretStr | None = Field(None, description="Password of that key, if it is encrypted.")
    tls_client_ca: FilePath | None = Field(
        None,
        description="Authorities (PEM), one of which must have signed each client's certificate; by default "
        "clients need none.",
    )
    cors_origins: Annotated[str | None, AfterValidator(_origins)] = Field(
        None, description="Origins whose pages may send requests: https://host:port, several with commas, or *."
    )
    allowed_hosts: Annotated[str | None, AfterValidator(_hosts)] = Field(
        None,
        description="Accepted host names in addition to localhost and host: several with commas, or *. The default is "
        "no other name if the service has no keys and is reachable from this machine only, else any name.",
    )
    root_path: Annotated[str | None, AfterValidator(_path)] = Field(
        None,
        description="Path under which a proxy serves the service, such as /loss, whether or not the proxy removes it.",
    )
    runs: Annotated[SecretStr | None, AfterValidator(_runs)] = Field(
        None,
        description="Where runs are kept: a file (SQLite), postgresql://user:password@host/database (lossd[postgres]), "
        "or off; by default the user's file, ~/.local/share/lossd/runs.db.",
    )
    runs_per_key: Annotated[int, Field(ge=1)] = Field(1000, description="Maximum number of runs of one API key.")
    run_bytes: ByteSize = Field(
        ByteSize(256 << 20),
        ge=1 << 10,
        le=2 << 30,
        description="Maximum memory of a run's state in the store, in bytes.",
    )
    runs_bytes_per_key: ByteSize = Field(
        ByteSize(8 << 30), ge=1 << 10, description="Maximum bytes of all runs of one API key."
    )
    runs_keep_open_days: Annotated[int, Field(ge=1)] = Field(
        30, description="Days after its last batch until a run that is not sealed is deleted."
    )
    runs_keep_days: Annotated[int | None, Field(ge=1)] = Field(
        None, description="Days until a sealed run is deleted; by default it is kept."
    )
    perceptual_weights: FilePath | None = Field(
        None, description="VGG16's weights for the perceptual loss, named as in torchvision: .pth or .safetensors."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of logged messages."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="JSON or text; auto is text on a terminal, else JSON."
    )
    access_log: Literal["all", "problems", "none"] = Field("all", description="Which requests get a line in the log.")
    access_log_per_s: Annotated[int, Field(ge=0)] = Field(
        100, description="Maximum number of log lines of answers a second, and the same for problems; 0 for no limit."
    )
    tracing: bool = Field(
        False,
        description="Whether requests become OpenTelemetry spans (lossd[otel]); OpenTelemetry's variables "
        "say where they are sent.",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            raise ValueError("tls_key and tls_client_ca need a tls_cert")
        return self

    @model_validator(mode="after")
    def _fronts_share(self) -> Self:
        """Give each front its part of the memory."""
        for name in ("queue_bytes", "cache_bytes"):
            self.__dict__[name] = ByteSize(getattr(self, name) // self.fronts)  # the model is frozen
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        """Lower a default to the other setting's value; raise an error if both are set and disagree."""
        part = f" for each of {self.fronts} fronts" if self.fronts > 1 else ""
        for name, other, each in (
            ("max_body_bytes", "queue_bytes", part),
            ("request_timeout_ms", "max_timeout_ms", ""),
        ):
            found, most = getattr(self, name), getattr(self, other)
            if found > most and name in self.model_fields_set:
                raise ValueError(
                    f"{name} is {found:d}, more than {other}, {most:d}{each}: lower the one or raise the other"
                )
            self.__dict__[name] = min(found, most)
        return self

    @property
    def has_keys(self) -> bool:
        """Whether requests need an API key."""
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def is_local(self) -> bool:
        """Whether the service is reachable from this machine only."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation))
"""The settings whose values never appear on a command line or in a message."""
