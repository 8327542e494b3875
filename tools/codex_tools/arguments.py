"""Read the arguments of a call, as clients really send them.

Several clients send every object, list, number or boolean as a JSON string for a whole session.
Some send null or "" for each argument that the model left out. This module accepts both.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from codex_tools.codex.errors import InvalidArguments, PromptTooLarge
from codex_tools.codex.json_object import Json
from codex_tools.codex.record import Record

RequestT = TypeVar("RequestT", bound=Record)

TEXT_LIMIT = 1_000_000
"""Maximum characters of a string that is parsed as JSON: 10 ms of work on the event loop."""

_MISSED = object()
"""Stands for a value that cannot be converted."""


@dataclass(frozen=True, slots=True)
class Arguments(Generic[RequestT]):
    """The arguments of a call, validated."""

    request: RequestT
    warnings: tuple[str, ...] = ()
    """A note for the caller, if strings were converted to other types."""


def read_arguments(
    model: type[RequestT], arguments: Json, schema: Json | None = None
) -> Arguments[RequestT]:
    """Return *arguments* as a request of the type *model*.

    An optional argument that is null or "" counts as left out. A string where the schema allows no
    string is parsed as JSON. A string where it allows only a list becomes a list of one. A whole
    number such as 20.0 is an integer. All other values of a wrong type are refused. A string where
    the schema allows one is never parsed, and values inside an object are not touched.

    Args:
        model: The type of the request.
        arguments: The arguments as the caller sent them.
        schema: The JSON Schema of *model* that the caller knows; None to make it, which reads the
            source of *model*.

    Raises:
        InvalidArguments: An argument is unknown, missing or of the wrong type.
        PromptTooLarge: The prompt is longer than Codex accepts.
    """
    fields = _fields(_schema_of(model) if schema is None else schema)
    given = {name: value for name, value in arguments.items() if not _left_out(value, name, fields)}
    try:
        return Arguments(model.model_validate(given))
    except ValidationError as error:
        faults = error
    converted: list[str] = []
    for name in dict.fromkeys(fault["loc"][0] for fault in faults.errors() if fault["loc"]):
        if not isinstance(name, str) or name not in fields or name not in given:
            continue
        value = _convert(given[name], fields[name])
        if value is _MISSED:
            continue
        if isinstance(given[name], str):
            converted.append(name)
        if value is None:
            del given[name]
        else:
            given[name] = value
    try:
        request = model.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, given, list(fields)) from None
    if not converted:
        return Arguments(request)
    names = ", ".join(converted)
    note = f"Sent as a string and converted to the type in the schema: {names}."
    return Arguments(request, (note,))


@dataclass(frozen=True, slots=True)
class _Field:
    """What the schema says of an argument."""

    optional: bool
    types: frozenset[str]
    choices: frozenset[str]
    """The strings that it allows; empty for any."""


@functools.cache
def _schema_of(model: type[Record]) -> Json:
    return model.model_json_schema()


def _fields(schema: Json) -> dict[str, _Field]:
    """Return what *schema* says of each argument, by the argument's name."""
    required = schema.get("required", ())
    found: dict[str, _Field] = {}
    for name, about in cast(dict[str, Json], schema["properties"]).items():
        forms: list[Json] = about.get("anyOf", [about])
        types = frozenset(str(form.get("type")) for form in forms) - {"null"}
        choices = frozenset(each for form in forms for each in form.get("enum", ()))
        found[name] = _Field(name not in required, types, choices)
    return found


def _left_out(value: object, name: str, fields: dict[str, _Field]) -> bool:
    return (value is None or value == "") and name in fields and fields[name].optional


def _convert(value: Any, field: _Field) -> Any:
    """Return *value* in a type that *field* allows; None if that means left out, or `_MISSED`."""
    if isinstance(value, float) and value.is_integer() and "integer" in field.types:
        return int(value)
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        return _MISSED
    parsed = _parse(value)
    if isinstance(parsed, float) and parsed.is_integer() and "integer" in field.types:
        return int(parsed)
    if parsed is None and field.optional and "string" not in field.types:
        return None
    if field.types & _types_of(parsed) or (isinstance(parsed, str) and parsed in field.choices):
        return parsed
    if field.types == frozenset({"array"}) and value.strip()[:1] not in ("", "[", "{", '"'):
        return [value]
    return _MISSED


def _parse(text: str) -> Any:
    """Return *text* parsed as JSON, or `_MISSED`; Python's True and False are accepted too.

    The parser stops at 200 levels of nesting and at 4,300 digits.
    """
    text = text.strip()
    if text in ("True", "False"):
        return text == "True"
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return _MISSED


def _types_of(value: object) -> frozenset[str]:
    """Return the names in JSON Schema of the types of *value*, which is no string."""
    match value:
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number"})
        case list():
            return frozenset({"array"})
        case dict():
            return frozenset({"object"})
        case _:
            return frozenset()


def _refusal(error: ValidationError, given: Json, known: list[str]) -> Exception:
    """Return the error that names each fault of the arguments *given*."""
    problems: list[str] = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "string_too_long" and fault["loc"] == ("prompt",):
            return PromptTooLarge(len(given["prompt"]), fault.get("ctx", {}).get("max_length", 0))
        problems.append(_problem(fault, known))
    return InvalidArguments(problems)


def _problem(fault: ErrorDetails, known: list[str]) -> str:
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5)
        return f"unknown argument {where!r}" + (f", did you mean {near[0]!r}?" if near else "")
    message = fault["msg"].removeprefix("Value error, ").replace("a valid dictionary", "an object")
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{where}: {message}" if where else message
