"""Every setting once: its name, default, unit and what it does. Read from the environment as ``LOSSD_<NAME>``."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, FilePath, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["LINK", "SECRETS", "Settings"]

LINK = re.compile(r"(?:tcp|udp|sctp)://")
"""What Kubernetes writes into ``LOSSD_PORT`` where a Service is called lossd: its address, which is no setting."""

DEFAULT_PORT = 8000
SMALLEST_BATCH_BYTES = 1 << 16  # the smallest slab: less would leave no room for a row
CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # version 1 says that there is none by a number about as large as there are
SMALLEST_PART = 16 << 20
LONGEST_MS = 7 * 24 * 3600 * 1000

Milliseconds = Annotated[int, Field(ge=1, le=LONGEST_MS)]


def _cores() -> float:
    """The processor time this process may use, in cores: of those it may run on, what its container leaves it."""
    cores: float = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))  # "max" is no number: there is no limit
    return cores


def _memory_bytes() -> float:
    """The memory that this process's control groups leave it, each within the one above; infinite where none limits.

    As version 2 (``memory.max``, "max" for none) or version 1 (``memory.limit_in_bytes``) has it. A container sees its
    own group as the root, or else the whole path and only its own part of it.
    """
    limit = math.inf
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                root, name = ("", "memory.max") if controllers == "" else ("memory", "memory.limit_in_bytes")
                group = PurePosixPath("/", path)
                for folder in (group, *group.parents):
                    with suppress(OSError, ValueError):
                        limit = min(limit, int((CGROUPS / root / folder.relative_to("/") / name).read_text()))
    return limit if limit < NO_LIMIT else math.inf


def _part_of_memory(most: int, part: int) -> ByteSize:
    """So many bytes, or a part of the memory where that is limited and less."""
    return ByteSize(int(min(most, max(SMALLEST_PART, _memory_bytes() / part))))


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
        raise ValueError("an API key is 16 or more visible ASCII characters; lossd key NAME makes a good one")
    return value


def _hosts(value: str | None) -> str | None:
    for name in [] if value is None else value.split(","):
        if name != "*" and not re.fullmatch(r"[^\s:/?#@\[\]]+|(?=.*:.*:)[0-9A-Fa-f:.]+", name):
            raise ValueError(f"{name!r} is no name of a host; write loss.example, several with commas, or *")
    return value


def _path(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(/[\w.~-]+)*/?", value, re.ASCII):
        raise ValueError(f"{value!r} is no path; write /loss")
    return (value or "").rstrip("/") or None


def _origins(value: str | None) -> str | None:
    for origin in (value or "*").split(","):
        if origin != "*" and not re.fullmatch(r"https?://[^/?#\s*]+", origin):
            raise ValueError(f"{origin!r} is not an origin; write https://host:port, several with commas, or *")
    return value


class Settings(BaseSettings):
    """How the service runs. The command line overrides the environment, which overrides the defaults."""

    model_config = SettingsConfigDict(env_prefix="LOSSD_", extra="ignore", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; the default is reachable from this machine only.")
    port: Annotated[int, BeforeValidator(_port), Field(ge=0, le=65535)] = Field(
        DEFAULT_PORT, description="Port to listen on; 0 picks a free one."
    )
    device: Annotated[str, AfterValidator(_devices)] = Field(
        "cpu", description="Where losses are computed: cpu, cuda, or cuda:0,cuda:1 for one worker process each."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        max(1, math.ceil(_cores()) - 1),
        description="Threads of a CPU worker; by default one a core it may use, but for one core.",
    )
    compiled: bool = Field(
        True,
        description="Whether a CPU worker compiles the losses asked for most, where lossd compile has not.",
    )
    cache_dir: Path | None = Field(
        None, description="Where compiled code is kept between starts; by default the user's cache, ~/.cache/lossd."
    )
    engine: Literal["process", "inline"] = Field(
        "process", description="Worker processes, or evaluation inside the front (for embedding and tests)."
    )
    fronts: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="Processes that take requests on one port and share the workers; limits are for each of them."
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        ge=1 << 10,
        description="Largest request body, in bytes (units such as 1GiB are understood); by default never more than "
        "queue_bytes.",
    )
    max_json_bytes: ByteSize = Field(
        ByteSize(16 << 20),
        ge=1 << 10,
        description="Largest JSON text, in bytes, of a request or an answer; tensors may be larger in binary.",
    )
    queue_bytes: ByteSize = Field(
        _part_of_memory(4 << 30, 4),
        ge=1 << 10,
        description="Most memory that requests in progress may hold, answers and temporaries included, in bytes; by "
        "default a quarter of the container's, where that is less.",
    )
    queue_requests: Annotated[int, Field(ge=1)] = Field(
        8192, description="Most requests that may be in progress at a time."
    )
    requests_per_key: Annotated[int, Field(ge=1)] = Field(
        1024, description="Most requests that may be in progress for one API key at a time."
    )
    batch_bytes: ByteSize = Field(
        ByteSize(8 << 20),
        ge=SMALLEST_BATCH_BYTES,
        le=16 << 30,
        description="Largest batch, in bytes of inputs and answers; a larger request goes alone.",
    )
    stream_bytes: ByteSize = Field(
        ByteSize(1 << 20),
        ge=1 << 10,
        description="Bodies from this size on are written to shared memory as they arrive.",
    )
    cache_bytes: ByteSize = Field(
        _part_of_memory(1 << 30, 16),
        description="Shared memory kept ready between requests, in bytes; more is given back; by default a sixteenth "
        "of the container's memory, where that is less.",
    )
    request_timeout_ms: Milliseconds = Field(
        60_000, description="Deadline of a request that brings none (X-Request-Timeout-Ms), in milliseconds."
    )
    max_work_ms: Milliseconds = Field(
        60_000,
        description="Most work one request may be by estimate, in milliseconds of one core; more is refused.",
    )
    max_timeout_ms: Milliseconds = Field(
        600_000, description="Longest deadline a request may bring, in milliseconds; a longer one is cut to it."
    )
    idle_timeout_ms: Milliseconds = Field(
        20_000,
        description="Longest pause within a body or an answer, and longest time for a request's head, in milliseconds.",
    )
    min_body_bytes_per_s: Annotated[int, Field(ge=0)] = Field(
        4096,
        description="Least rate of a body that is read, over ten seconds; below it, the answer is 408; 0 for none.",
    )
    keep_alive_timeout_ms: Annotated[int, Field(ge=1000, le=LONGEST_MS)] = Field(
        75_000, description="Longest pause between two requests of a connection, in milliseconds."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        4096, description="Most connections that are served at a time; one more is answered 503."
    )
    worker_timeout_ms: Milliseconds = Field(
        120_000,
        description="A worker that has work and gives no sign of life for so long is replaced, in milliseconds.",
    )
    poll_us: Annotated[int, Field(ge=0, le=10_000)] = Field(
        2000 if _cores() >= 2 else 0,
        description="How long front and worker look for what the other sends before they sleep, where requests come "
        "one by one, in microseconds, since to be woken takes as long; 0 where there are no two cores for that.",
    )
    drain_timeout_ms: Annotated[int, Field(ge=0, le=LONGEST_MS)] = Field(
        30_000, description="Longest wait for requests in progress at shutdown, in milliseconds."
    )
    api_keys_file: FilePath | None = Field(
        None, description="API keys that are let in, one name:sha256hex a line (lossd key); read again on SIGHUP."
    )
    api_key: Annotated[SecretStr | None, AfterValidator(_key)] = Field(
        None, description="One API key that is let in, for a single client; it goes by the name default."
    )
    metrics_public: bool = Field(False, description="Whether /metrics is open to requests without an API key.")
    tls_cert: FilePath | None = Field(
        None, description="Certificate chain (PEM) to serve HTTPS with; read again on SIGHUP. Without one, HTTP."
    )
    tls_key: FilePath | None = Field(None, description="The certificate's private key (PEM), if in a file of its own.")
    tls_key_password: SecretStr | None = Field(None, description="What that key is encrypted with, if it is.")
    tls_client_ca: FilePath | None = Field(
        None, description="Authorities (PEM), one of which must have signed a client's certificate; none asks for none."
    )
    cors_origins: Annotated[str | None, AfterValidator(_origins)] = Field(
        None, description="Origins whose pages may ask from a browser: https://host:port, several with commas, or *."
    )
    allowed_hosts: Annotated[str | None, AfterValidator(_hosts)] = Field(
        None,
        description="Names that the service goes by, beside localhost and host, several with commas, or *; by default "
        "no others where it has no keys and is reachable from this machine only, else any.",
    )
    root_path: Annotated[str | None, AfterValidator(_path)] = Field(
        None, description="Path below which a proxy serves it, such as /loss, whether or not the proxy takes it off."
    )
    perceptual_weights: FilePath | None = Field(
        None, description="VGG16's weights for the perceptual loss, as torchvision names them: .pth or .safetensors."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Lines of JSON, or of text to be read; by itself text on a terminal only."
    )
    access_log: Literal["all", "problems", "none"] = Field("all", description="Which requests get a line in the log.")
    access_log_per_s: Annotated[int, Field(ge=0)] = Field(
        100, description="Most such lines a second, and as many for problems; 0 for any number."
    )
    tracing: bool = Field(
        False,
        description="Whether requests become spans of OpenTelemetry (lossd[otel]), sent as its own variables say.",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            raise ValueError("tls_key and tls_client_ca need a tls_cert")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        """A default gives way to what is set; two that are set must agree."""
        for name, other in (("max_body_bytes", "queue_bytes"), ("request_timeout_ms", "max_timeout_ms")):
            found, most = getattr(self, name), getattr(self, other)
            if found > most and name in self.model_fields_set:
                raise ValueError(f"{name} is {found:d}, more than {other}, {most:d}: lower the one or raise the other")
            self.__dict__[name] = min(found, most)  # the model is frozen for others
        return self

    @property
    def has_keys(self) -> bool:
        """Whether whoever asks must show an API key."""
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def is_local(self) -> bool:
        """Whether it listens to this machine alone."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation))
"""The settings whose values appear nowhere: not on a command line, not in a message."""
