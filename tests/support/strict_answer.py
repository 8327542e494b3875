"""An answer as a model held to the sent schema would write it."""

from __future__ import annotations

import json
from typing import Any, cast

from codex_tools.codex.json_object import Json
from codex_tools.schemas.rewriter import StrictSchema
from codex_tools.schemas.validation import Validator


def dumped(value: object) -> str:
    """Tell 1 from true and from 1.0, which Python's == does not."""
    return json.dumps(value, sort_keys=True)


def is_valid(schema: Json, value: object) -> bool:
    return Validator(schema).is_valid(value)


class Unsayable(Exception):
    """What is sent has no way to say it."""


def encoded(answer: object, strict: StrictSchema) -> object:
    """Return *answer*, which is in the caller's form, in the form that was asked for."""
    root = strict.schema
    if [*root["properties"]] == ["answer"]:
        return {"answer": encode(answer, root["properties"]["answer"], root)}
    return encode(answer, root, root)


def alternatives(sent: Json) -> list[Json]:
    if "anyOf" in sent:
        return sent["anyOf"]
    kinds = sent["type"]
    listed = cast(list[str], kinds) if isinstance(kinds, list) else []
    return [sent | {"type": kind} for kind in listed]


def encode(value: Any, sent: Json, root: Json) -> Any:
    if "$ref" in sent:
        return encode(value, resolved(sent, root), root)
    options = alternatives(sent)
    for option in options:
        try:
            return encode(value, option, root)
        except Unsayable:
            continue
    if options:
        raise Unsayable
    found: object = value
    match sent["type"]:
        case "string" if "JSON text" in sent.get("description", ""):
            if "JSON object" in sent["description"] and not isinstance(value, dict):
                raise Unsayable
            found = json.dumps(cast(object, value), separators=(",", ":"), sort_keys=True)
        case "array" if isinstance(value, dict):
            pairs = cast(Json, value).items()
            inner = sent["items"]["properties"]
            if [*inner] != ["key", "value"]:
                raise Unsayable
            found = [
                {"key": encode(k, inner["key"], root), "value": encode(v, inner["value"], root)}
                for k, v in pairs
            ]
        case "array" if isinstance(value, list):
            found = [encode(each, sent["items"], root) for each in cast(list[Any], value)]
        case "object" if isinstance(value, list) and "item_0" in sent["properties"]:
            found = encode_tuple(cast(list[Any], value), sent, root)
        case "object" if isinstance(value, dict):
            found = encode_object(cast(Json, value), sent, root)
        case _:
            pass
    own = {key: each for key, each in sent.items() if key not in ("items", "properties")}
    if not is_valid(own | {"additionalProperties": True}, cast(object, found)):
        raise Unsayable
    return cast(Any, found)


def encode_object(value: Json, sent: Json, root: Json) -> Json:
    properties = sent["properties"]
    found = {
        name: encode(value.get(name), each, root)
        for name, each in properties.items()
        if not name.startswith("other_entries") or name in value or each["type"] != "array"
    }
    rest = {name: each for name, each in value.items() if name not in properties}
    for name in properties.keys() - found.keys():
        found[name], rest = encode(rest, properties[name], root), {}
    if rest:
        raise Unsayable
    return found


def encode_tuple(value: list[Any], sent: Json, root: Json) -> Json:
    names = [name for name in sent["properties"] if name != "further_items"]
    if len(value) > len(names) and "further_items" not in sent["properties"]:
        raise Unsayable
    padded = value[: len(names)] + [None] * (len(names) - len(value))
    found = {n: encode(v, sent["properties"][n], root) for n, v in zip(names, padded, strict=True)}
    if "further_items" in sent["properties"]:
        further = sent["properties"]["further_items"]
        found["further_items"] = encode(value[len(names) :], further, root)
    return found


def resolved(sent: Json, root: Json) -> Json:
    return root if sent["$ref"] == "#" else root["$defs"][sent["$ref"].removeprefix("#/$defs/")]


def comes_back(restored: object, answer: object) -> bool:
    """Tell whether the two are equal but for nulls that the caller takes as well as nothing."""
    if isinstance(restored, dict) and isinstance(answer, dict):
        found, given = cast(Json, restored), cast(Json, answer)
        more = {found[name] for name in found.keys() - given.keys()}
        return more <= {None} and all(n in found and comes_back(found[n], given[n]) for n in given)
    if isinstance(restored, list) and isinstance(answer, list):
        items, wanted = cast(list[object], restored), cast(list[object], answer)
        alike = map(comes_back, items, wanted)
        return len(items) == len(wanted) and all(alike)
    return dumped(cast(Any, restored)) == dumped(answer)
