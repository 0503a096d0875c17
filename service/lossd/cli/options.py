"""The parameters of a loss as options of a command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

__all__ = ["describe", "option_name", "parameter_option"]

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def option_name(name: str) -> str:
    """The option of that name."""
    return "--" + name.replace("_", "-")


def describe(loss: str, url: str | None) -> Mapping[str, Any]:
    """The loss as the catalogue has it, which is that of the service where one is asked."""
    if url is not None:
        from lossd_client import LossClient

        with LossClient(url) as service:
            return service.loss(loss)
    from lossd.api.catalogue import describe_loss
    from lossd.losses.registry import find

    return describe_loss(find(loss))


class _JsonValue(click.ParamType[Any]):
    """A number, list or object as JSON; a list of numbers may go without its brackets, a string without its quotes."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        for text in (value, f"[{value}]"):
            try:
                return json.loads(text)
            except ValueError:
                pass
        return value


def parameter_option(name: str, schema: Mapping[str, Any]) -> click.Option:
    """The option for a parameter, made from its JSON Schema."""
    arms = schema.get("anyOf", [schema])
    types = [arm["type"] for arm in arms if "type" in arm]
    flag = types == ["boolean"]
    choices = [choice for arm in arms for choice in arm.get("enum", [arm["const"]] if "const" in arm else [])]
    bounds = [f"{sign} {arm[key]:g}" for arm in arms for key, sign in _BOUNDS.items() if key in arm]
    notes = [*bounds, f"default: {json.dumps(schema['default'])}"] if "default" in schema else [*bounds, "required"]
    option = option_name(name)
    return click.Option(
        [f"{option}/--no-{option[2:]}" if flag else option, name],
        default=None,
        type=None if flag else click.Choice(choices) if choices else _JsonValue(),
        metavar=None if flag or choices else "|".join(dict.fromkeys(types)).upper() or "JSON",
        help=f"{schema.get('description', '').replace('``', '')} [{'; '.join(notes)}]",
    )
