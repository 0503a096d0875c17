"""A command's options for the parameters of a loss."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.help import Command
from lossd.cli.known import known
from lossd.request.literal import literal

if TYPE_CHECKING:
    from lossd_client import LossClient

__all__ = [
    "API_KEY",
    "CACERT",
    "CACERT_KEY",
    "METRIC_OPTION",
    "AddressType",
    "LevelType",
    "LossCommand",
    "SliceValuesType",
    "TagType",
    "api_key",
    "as_text",
    "connect",
    "describe",
    "metric_options",
    "option_name",
]

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

API_KEY = "LOSSD_API_KEY"
"""The variable with the key for a service; a command line would show the key to other users."""


CACERT_KEY = "lossd.cacert"


def _keep(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:  # the option may stand before a subcommand, or after it
        ctx.meta[CACERT_KEY] = value


CACERT = click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    expose_value=False,
    callback=_keep,
    help="With --url: the certificates (PEM) of the private authority that signed the service's certificate.",
)
"""The option beside --url; :func:`connect` reads it."""

METRIC_OPTION = click.option(
    "--metric-option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of the metrics: threshold=0.7, k=2, from_logits=false. lossd metrics lists the options.",
)
"""The option of commands that compute metrics; :func:`metric_options` reads it."""


class LossCommand(Command):
    """A command with an option for every parameter of its loss.

    The loss is the value of ``--loss``; if the parameters may have ``several`` values, it is the command's first word.
    """

    several = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments with the loss's options; ``ctx.obj`` describes the loss."""
        loss, url = self._named(ctx, args)
        if loss is not None and ctx.resilient_parsing:  # shell completion
            ctx.obj = known()["losses"].get(loss)
        elif loss is not None:
            ctx.obj = describe(loss, url)
        return super().parse_args(ctx, args)

    def _named(self, ctx: click.Context, args: list[str]) -> tuple[str | None, str | None]:
        if self.several:
            return (args[0] if args and not args[0].startswith("-") else None), None
        which = click.Command(
            "which",
            params=[click.Option(["--loss"]), click.Option(["--url"]), click.Option(["--cacert"])],
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            add_help_option=False,
        )
        named = which.make_context("which", list(args), resilient_parsing=True).params
        ctx.meta[CACERT_KEY] = named["cacert"]
        return named["loss"], named["url"]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, then the loss's."""
        return [*super().get_params(ctx), *self._of_loss(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options and the loss's in separate sections."""
        sections = {"Options": super().get_params(ctx), "Parameters of the loss": self._of_loss(ctx)}
        for title, params in sections.items():
            records = [param.get_help_record(ctx) for param in params if isinstance(param, click.Option)]
            if records:
                with formatter.section(title):
                    formatter.write_dl([record for record in records if record])

    def _of_loss(self, ctx: click.Context) -> list[click.Parameter]:
        if not ctx.obj:
            return []
        parameters = ctx.obj["parameters"].items()
        return [
            _parameter_option(name, schema, several=self.several)
            for name, schema in parameters
            if not (self.several and name in ("reduction", "nan_targets"))
        ]


def option_name(name: str) -> str:
    """Return the option of a parameter."""
    return "--" + name.replace("_", "-")


def describe(loss: str, url: str | None = None) -> Mapping[str, Any]:
    """Return the catalogue's entry of a loss, from the service at ``url`` if there is one."""
    if url is not None:
        with connect(AddressType().convert(url, None, None)) as service:
            return service.loss(loss)
    from lossd.api.catalogue import describe_loss_in_full
    from lossd.losses.lookup import find_loss

    return describe_loss_in_full(find_loss(loss, listed_by="lossd losses"))


def connect(url: str) -> LossClient:
    """Return a client of the service at an address, with the key of the environment and the command's --cacert."""
    from lossd_client import LossClient

    context = click.get_current_context(silent=True)
    cacert: Path | None = context.meta.get(CACERT_KEY) if context else None
    try:
        return LossClient(url, api_key=api_key(), cacert=cacert)
    except OSError as error:
        raise click.BadParameter(f"{cacert}: {error.strerror or error}", param_hint="--cacert") from None


def metric_options(names: str | None, options: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the request's ``metrics`` object; None without names and options."""
    options_object: dict[str, Any] = {"names": names.split(",")} if names else {}
    for item in options:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--metric-option")
        options_object[name] = literal(value)
    return options_object or None


class TagType(click.ParamType[tuple[str, str]]):
    """A tag of a run: NAME=VALUE."""

    name = "tag"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the tag's name and its value."""
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


class SliceValuesType(click.ParamType[tuple[str, list[str]]]):
    """A slice and its values: site=A,B."""

    name = "values"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[str]]:
        """Return the slice's name and its values."""
        name, equals, text = str(value).partition("=")
        values = text.split(",")
        if not equals or not name or not all(values):
            self.fail(f"{value!r} is not NAME=VALUE,VALUE", param, ctx)
        return name, values


class LevelType(click.FloatRange):
    """The level of intervals."""

    def __init__(self) -> None:
        super().__init__(0.5, 0.9999, min_open=True)


class AddressType(click.ParamType[str]):
    """The address of a service: http://host:port, host:port alone, or unix:///path; several are separated by commas."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address with a scheme."""
        from lossd_client.addresses import split_urls

        try:
            return ",".join(split_urls([_with_scheme(part.strip()) for part in str(value).split(",")]))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param, param_hint="--url") from None


def _with_scheme(text: str) -> str:
    bare = "://" not in text and not text.lower().startswith(("http:", "https:"))
    return f"http://{text}" if bare and text else text


def api_key() -> str | None:
    """Return the key for a service from the environment; None if it is not set."""
    from lossd_client.service import check_api_key

    key = os.environ.get(API_KEY) or None
    try:
        check_api_key(key)
    except ValueError as error:
        raise click.UsageError(f"{API_KEY}: {error}") from None
    return key


def as_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as text."""
    return " ".join(f"{name}={value}" for name, value in parameters.items())


class _Literal(click.ParamType[Any]):
    """A value that :func:`lossd.request.literal.literal` reads."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return literal(value) if isinstance(value, str) else value


def _parameter_option(name: str, schema: Mapping[str, Any], *, several: bool) -> click.Option:
    """Return the option for a parameter, made from its JSON Schema."""
    arms: Sequence[Mapping[str, Any]] = schema.get("anyOf", [schema])
    types = [arm["type"] for arm in arms if "type" in arm]
    flag = types == ["boolean"] and not several
    choices = [choice for arm in arms for choice in arm.get("enum", [arm["const"]] if "const" in arm else [])]
    bounds = [f"{sign} {arm[key]:g}" for arm in arms for key, sign in _BOUNDS.items() if key in arm]
    notes = [*bounds, f"default: {json.dumps(schema['default'])}"] if "default" in schema else [*bounds, "required"]
    option = option_name(name)
    return click.Option(
        [f"{option}/--no-{option[2:]}" if flag else option, name],
        default=None,
        multiple=several,
        type=None if flag else click.Choice(choices) if choices else _Literal(),
        metavar=None if flag or choices else "|".join(dict.fromkeys(types)).upper() or "JSON",
        help=f"{schema.get('description', '').replace('``', '')} [{'; '.join(notes)}]",
    )
