"""Checks the fields of a request with Pydantic, and words their faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, NotRequired, Required, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from lossd.losses.lookup import closest
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["check_entries", "validated", "without_nulls"]

M = TypeVar("M", bound=BaseModel)

Place = tuple[int | str, ...]

MAX_FAULTS = 10
MAX_FIELDS = 1024
_IN_PYTHON = re.compile(r"a valid dictionary( or instance of \w+)?")
MAX_NAME = 60


def without_nulls(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without those that are null, if null is no value of theirs and they have a default.

    Clients that are generated from a schema send null for what nobody has set.
    """
    if None not in fields.values():
        return fields
    return {name: value for name, value in fields.items() if value is not None or name not in _defaulted(model)}


@cache
def _defaulted(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields that have a default and may not be null."""
    properties = model.model_json_schema()["properties"]
    return frozenset(
        name
        for name, schema in properties.items()
        if not model.model_fields[name].is_required() and {"type": "null"} not in schema.get("anyOf", ())
    )


Elsewhere = Callable[[str], str]
"""``f(name)`` says where an unknown field belongs, as the end of a sentence; empty if that is unknown."""


def validated(model: type[M], fields: dict[str, Any], pointer: str, elsewhere: Elsewhere = lambda _: "") -> M:
    """Return the fields as an instance of a model.

    Raises:
        InvalidRequest: A field is invalid; ``errors`` points at each fault, starting at ``pointer``.
    """
    try:
        return model.model_validate(without_nulls(model, fields))
    except ValidationError as error:
        found = _one_each(fields, error.errors(include_url=False, include_input=True))
        shown = found[:MAX_FAULTS]
        faults = [_fault(model, pointer, place, e, elsewhere) for place, e in shown]
        more = len(found) - len(shown)
        detail = "; ".join(f["detail"] for f in faults) + (f"; and {more} more" if more else "")
        raise InvalidRequest(detail, errors=faults) from None


def check_entries(request: Any) -> None:
    """Check that every integer of a request fits a tensor, and that no object is large.

    Args:
        request: The document, whose depth is already checked.

    Raises:
        InvalidRequest: An integer or an object is too large; ``errors`` points at the first one.
    """
    if (fault := _bad_entry(request)) is not None:
        path, detail = fault
        raise InvalidRequest(
            detail, errors=[Fault(pointer="".join(f"/{_token(part)}" for part in path), detail=detail)]
        )


def _bad_entry(value: Any) -> tuple[Place, str] | None:
    """Return the place of the first entry that is too large, and its fault."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        return (), f"an object of a request may have {MAX_FIELDS} fields, this one has {len(value)}"
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if type(child) is int:
            if not -(2**63) <= child < 2**63:
                return (key,), f"{child} is outside the range of int64"
        elif child and type(child) in (dict, list) and (fault := _bad_entry(child)) is not None:
            return (key, *fault[0]), fault[1]
    return None


def _token(part: object) -> str:
    """Return a part of an RFC 6901 pointer."""
    return str(part).replace("~", "~0").replace("/", "~1")[:MAX_NAME]


def _one_each(fields: Any, errors: Sequence[Mapping[str, Any]]) -> list[tuple[Place, dict[str, Any]]]:
    """Return one error for each place in the request.

    Pydantic reports errors for every arm of a union; keep those of the arms that matched farthest.
    """
    places = [_place(fields, error["loc"]) for error in errors]
    whole = [len(place) == len(error["loc"]) for place, error in zip(places, errors, strict=True)]
    remaining: dict[Place, dict[str, Any]] = {}
    for place, error, alone in zip(places, errors, whole, strict=True):
        if not alone and any(len(other) > len(place) and other[: len(place)] == place for other in places):
            continue
        if place in remaining:
            remaining[place]["msg"] += f" or {error['msg'].removeprefix('Input should be ')}"
        else:
            remaining[place] = {**error}
    return list(remaining.items())


def _place(fields: Any, location: Sequence[int | str]) -> Place:
    """Return the location without the names of a union's arms: Pydantic's own, and in no request."""
    place: list[int | str] = []
    for position, part in enumerate(location):
        if isinstance(fields, dict):  # the last part may be a field that is missing
            if part not in fields and position < len(location) - 1:
                continue
            place.append(part)
            fields = fields.get(part)
        elif isinstance(fields, list) and isinstance(part, int) and part < len(fields):
            place.append(part)
            fields = fields[part]
    return tuple(place)


def _fault(model: type[BaseModel], pointer: str, place: Place, error: Mapping[str, Any], elsewhere: Elsewhere) -> Fault:
    where = pointer + "".join(f"/{_token(part)}" for part in place)
    field = ".".join(_shown(str(part)) for part in [*pointer.split("/")[1:], *place])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        near = closest(str(place[-1]), known)
        belongs = elsewhere(str(place[-1])) if len(place) == 1 else ""
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}" if known else ""
        return Fault(
            pointer=where, detail=f"{field} is not known" + (f"; {belongs or hint}" if belongs or hint else "")
        )
    if error["type"] == "missing":
        return Fault(pointer=where, detail=f"{field} is required")
    message = error["msg"][0].lower() + error["msg"][1:]
    message = _IN_PYTHON.sub("an object", message)
    return Fault(pointer=where, detail=f"{field}: {message}, found {quoted(error.get('input'))}")


def _shown(name: str) -> str:
    """Return a field's name, quoted if it is long or unprintable."""
    return name if len(name) <= MAX_NAME and name.isprintable() else quoted(name)


def _fields_at(model: type[BaseModel], place: Place) -> tuple[str, ...]:
    """Return the fields of the object at a place inside a model; none if they are unknown."""
    inside: Any = model
    for part in place:
        if isinstance(part, int):
            arms = [arm for arm in _arms(inside) if get_origin(arm) is list]
            inside = get_args(arms[0])[0] if arms else None
        else:
            inside = next((_annotations(arm)[part] for arm in _arms(inside) if part in _annotations(arm)), None)
    return next((tuple(fields) for arm in _arms(inside) if (fields := _annotations(arm))), ())


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself, without their annotations."""
    if get_origin(annotation) in (Annotated, Required, NotRequired):
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(arm for each in get_args(annotation) for arm in _arms(each))
    return (annotation,)


def _annotations(model: Any) -> Mapping[str, Any]:
    """Return the fields of a model or of a typed dictionary."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model, include_extras=True) if is_typeddict(model) else {}
