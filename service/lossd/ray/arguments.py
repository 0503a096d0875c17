"""The arguments of the application: how many replicas, what each gets, and lossd's settings. Imports no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from lossd.configuration.preflight import StartError, sentence, variable
from lossd.configuration.settings import Settings

__all__ = ["Arguments", "ReplicaPlacement"]

SERVES = {
    "host": "http_options of Serve",
    "port": "http_options of Serve",
    "fronts": "replicas",
    "lame_duck_ms": "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
    "tls_cert": "http_options of Serve (ssl_certfile)",
    "tls_key": "http_options of Serve (ssl_keyfile)",
    "tls_key_password": "http_options of Serve (ssl_keyfile_password)",
    "tls_client_ca": "http_options of Serve (ssl_ca_certs)",
}
"""Settings that do nothing here, and what does it."""


class ReplicaPlacement(BaseModel):
    """Where Ray puts replicas, and how many.

    Attributes:
        replicas: The number of replicas; with ``max_replicas``, the lowest.
        max_replicas: The highest number of replicas; None if the number does not change with the load.
        cpus: The cores of each replica.
        gpus: The GPUs of each replica; by default 1 for each device if they are GPUs.
        per_node: The most replicas of one node; None for any number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    cpus: float = Field(2, ge=0)
    gpus: float = Field(0, ge=0)
    per_node: int | None = Field(None, ge=1, le=100)

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, fewer than replicas, {self.replicas}")
        return self


@dataclass(frozen=True)
class Arguments:
    """What the application is started with.

    Attributes:
        placement: Where Ray puts replicas, and how many.
        settings: lossd's settings that differ from the environment of the replica's node.
    """

    placement: ReplicaPlacement
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the arguments of ``serve run`` or of a file.

        Files that settings name are looked for by each replica on its own node.

        Raises:
            StartError: A name is unknown or a value is invalid; the sentence says what is expected.
        """
        known = [*ReplicaPlacement.model_fields, *(name for name in Settings.model_fields if name not in SERVES)]
        faults = []
        for name in arguments:
            if name in SERVES:
                faults.append(f"{name} is not lossd's to set under Ray: use {SERVES[name]}")
            elif name not in known:
                near = get_close_matches(name, known, 1)
                faults.append(f"{name} is not an argument" + (f", did you mean {near[0]}?" if near else ""))
        if faults:
            raise StartError(
                f"{'; '.join(faults)} (arguments: {', '.join(ReplicaPlacement.model_fields)}, and lossd's settings)"
            )
        values = {name: value for name, value in arguments.items() if name in ReplicaPlacement.model_fields}
        settings = {name: value for name, value in arguments.items() if name not in ReplicaPlacement.model_fields}
        try:
            checked = _Given(**{name: value for name, value in settings.items() if not _is_file(name)})
            devices = checked.device.split(",")
            placement = ReplicaPlacement(**({"gpus": len(devices)} if devices != ["cpu"] else {}) | values)
        except ValidationError as error:
            raise StartError("; ".join(sentence(fault, str) for fault in error.errors())) from None
        cls._check(placement, checked, settings)
        return cls(placement, settings)

    @staticmethod
    def _check(placement: ReplicaPlacement, checked: Settings, settings: Mapping[str, Any]) -> None:
        """Check what depends on several arguments."""
        if (checked.device != "cpu") != (placement.gpus > 0):
            has = f"gpus={placement.gpus:g}"
            raise StartError(f"device={checked.device} and {has} disagree: write device=cuda gpus=1, or device=cpu")
        if settings.get("api_key") is not None:
            raise StartError(
                f"an API key would be visible to all users of the cluster: set {variable('api_key')} or "
                f"{variable('api_keys_file')} in the environment of the nodes, or api_keys_file here"
            )
        place = settings.get("runs")
        if place is None or place == "off":
            return
        if "://" not in place:
            raise StartError(
                f"runs={place} is a file, which each replica would have for itself: name a database, "
                "postgresql://user@host/database, or write off"
            )
        if "@" in place and ":" in place.partition("://")[2].rpartition("@")[0]:
            raise StartError(
                f"the password in runs would be visible to all users of the cluster: set {variable('runs')} in the "
                "environment of the nodes"
            )


class _Given(Settings):
    """The settings without the environment: it belongs to this machine, and the replicas may be on others."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the only source: the arguments."""
        return (init_settings,)


def _is_file(name: str) -> bool:
    return FilePath in getattr(Settings.model_fields[name].annotation, "__args__", ())
