"""A caller's schema in OpenAI's strict dialect: accepted there, equal here, and the way back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.codex.json_object import Json
from codex_tools.schemas.output_schema import check_schema
from codex_tools.schemas.rewriter import Ambiguous, make_strict
from codex_tools.schemas.validation import problems
from support.strict_answer import (
    Unsayable,
    alternatives,
    comes_back,
    dumped,
    encoded,
    is_valid,
    resolved,
)

DATA = Path(__file__).parents[2] / "data" / "schemas"
USABLE: list[Json] = json.loads((DATA / "usable.json").read_text())
IMPOSSIBLE: list[Json] = json.loads((DATA / "impossible.json").read_text())
STRICT = [case for case in USABLE if case["name"].startswith("strict already")]
CLOSED_OUT = {"pydantic: extra allowed"}
"""Their good answers hold a key that strict mode shuts out: only the caller's form has it."""

usable = pytest.mark.parametrize("case", USABLE, ids=[case["name"] for case in USABLE])


INTEGER: Json = {"type": "integer"}
TEXT: Json = {"type": "string"}
CLOSED: Json = {"type": "object", "additionalProperties": False}


def refusal(schema: Json) -> InvalidOutputSchema:
    with pytest.raises(InvalidOutputSchema) as caught:
        make_strict(schema)
    return caught.value


def of_properties(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}


# --- What OpenAI takes, written anew: nothing of this is the code's own.

ALLOWED = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"pattern", "format"},
    "number": {"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
FORMATS = {
    *("date-time", "time", "date", "duration", "email"),
    *("hostname", "ipv4", "ipv6", "uuid"),
}
PYTHON = {"string": str, "number": int | float, "integer": int, "boolean": bool}


def breaches(root: Json) -> list[str]:
    """Return how *root* breaks the rules of strict mode."""
    found: list[str] = []
    count = {"properties": 0, "characters": 0, "values": 0}
    if root.get("type") != "object" or "anyOf" in root:
        found.append("the root is no object")

    def look(node: Any, path: str, level: int) -> None:
        if not isinstance(node, dict):
            found.append(f"{path} is no object but {node!r}")
            return
        schema = cast(Json, node)
        if "$ref" in schema:
            name = schema["$ref"].removeprefix("#/$defs/")
            if schema.keys() != {"$ref"} or (name != "#" and name not in root.get("$defs", {})):
                found.append(f"{path}: {schema}")
            return
        notes = {"title", "description", *(["$defs"] if path == "$" else [])}
        if "anyOf" in schema:
            if schema.keys() - notes != {"anyOf"} or len(schema["anyOf"]) < 2:
                found.append(f"{path}: anyOf with {[*schema]}")
            for i, each in enumerate(schema["anyOf"]):
                look(each, f"{path}.anyOf[{i}]", level)
            return
        if "type" not in schema:
            found.append(f"{path} has no type")
            return
        declared = schema["type"]
        types = [declared] if isinstance(declared, str) else cast(list[str], declared)
        keywords = {key for each in types for key in ALLOWED[each.replace("integer", "number")]}
        for key in schema.keys() - notes - keywords - {"type", "enum", "const"}:
            found.append(f"{path}: {key} beside {types}")
        if level > 10 and {"object", "array"} & {*types}:
            found.append(f"{path} is more than 10 levels deep")
        if re.search(r"\(\?[^:]", schema.get("pattern", "")):
            found.append(f"{path}: a lookaround")
        if schema.get("format", "date") not in FORMATS:
            found.append(f"{path}: format {schema['format']}")
        values: list[Any] = schema.get("enum", [schema["const"]] if "const" in schema else [])
        for value in values:
            kind = PYTHON.get(types[0], ())
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                found.append(f"{path}: {value!r} is no {types}")
        texts = [value for value in values if isinstance(value, str)]
        count["characters"] += sum(map(len, texts))
        count["values"] += len(schema.get("enum", []))
        if len(texts) > 250 and sum(map(len, texts)) > 15_000:
            found.append(f"{path}: an enum that is too long")
        if "object" in types:
            names = schema.get("properties")
            if schema.get("additionalProperties") is not False or names is None:
                found.append(f"{path} is open")
                return
            if {*schema.get("required", [])} != {*names}:
                found.append(f"{path} has optional properties")
            count["properties"] += len(names)
            count["characters"] += sum(map(len, names))
            for name, each in names.items():
                look(each, f"{path}.properties.{name}", level + 1)
        if "array" in types:
            look(schema.get("items"), f"{path}.items", level + 1)

    look(root, "$", 1)
    for name, each in root.get("$defs", {}).items():
        count["characters"] += len(name)
        look(each, f"$.$defs.{name}", 1)
    limits = {"properties": 5_000, "characters": 120_000, "values": 1_000}
    return found + [f"too many {key}" for key, limit in limits.items() if count[key] > limit]


def referenced(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        node = cast(Json, schema)
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from referenced(each)
    elif isinstance(schema, list):
        for each in cast(list[object], schema):
            yield from referenced(each)


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False},
        {"type": "object", "properties": {}, "required": []},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        *(
            {"type": "object", "properties": {"a": inner}, "required": ["a"]}
            | {"additionalProperties": False}
            for inner in (
                *({}, True, {"const": 1}, {"enum": ["a"]}, {"type": "string", "minLength": 1}),
                *({"type": "string", "enum": ["a", 1]}, {"type": "integer", "const": True}),
                *({"type": "array"}, {"type": "string", "pattern": "(?=a)"}, {"$ref": "#/$defs/x"}),
                *({"$ref": "#", "title": "x"}, {"type": "string", "format": "uri"}),
                *({"oneOf": [{"type": "null"}]}, {"type": "string", "default": ""}),
                {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            )
        ),
    ],
    ids=str,
)
def test_the_checker_of_these_tests_sees_what_openai_refuses(broken: Json) -> None:
    assert breaches(broken)


SAMPLES = {
    "date": "2026-10-01",
    "time": "12:00:00Z",
    "date-time": "2026-10-01T12:00:00Z",
    "duration": "PT1H",
    "email": "a@example.com",
    "uuid": "6f1c2b1e-6a3e-4c39-9b0e-2f8a1a1f9f10",
}
JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "1", "null", "{"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=3,
)

OBJECTS = st.dictionaries(st.sampled_from("ab"), JSON, max_size=2)


def answers(sent: Json, root: Json, deep: int = 0) -> st.SearchStrategy[Any]:
    """Return all answers that strict mode lets through (and those alone)."""
    if "$ref" in sent:
        return st.deferred(lambda: answers(resolved(sent, root), root, deep + 1))
    options = alternatives(sent)
    if options:
        shallow = [each for each in options if each.get("type") in ("null", "number", "string")]
        return st.one_of([answers(each, root, deep) for each in (deep > 3 and shallow) or options])
    if "enum" in sent or "const" in sent:
        return st.sampled_from(sent.get("enum") or [sent["const"]])
    match sent["type"]:
        case "object":
            properties = cast(dict[str, Json], sent["properties"])
            members = {name: answers(each, root, deep) for name, each in properties.items()}
            return cast(st.SearchStrategy[Any], st.fixed_dictionaries(members))
        case "array":
            least = sent.get("minItems", 0)
            most = least if deep > 3 else min(sent.get("maxItems", 9), least + 2)
            return st.lists(answers(sent["items"], root, deep), min_size=least, max_size=most)
        case "string" if "JSON text" in sent.get("description", ""):
            if "JSON object" in sent["description"]:
                return OBJECTS.map(json.dumps)
            return JSON.map(json.dumps)
        case "string" if "pattern" in sent:
            # A $ ends the text in JSON Schema; in Python it may stand before a line feed.
            return st.from_regex(cast(str, sent["pattern"])).filter(lambda x: is_valid(sent, x))
        case "string":
            return st.sampled_from([SAMPLES.get(sent.get("format", ""), each) for each in "ab"])
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case _:
            least = sent.get("minimum", sent.get("exclusiveMinimum", -20))
            most = sent.get("maximum", sent.get("exclusiveMaximum", least + 40))
            step = sent.get("multipleOf", 1 if sent["type"] == "integer" else 0.25)
            numbers = [least + i * step for i in range(41) if least + i * step <= most]
            return st.sampled_from([each for each in [*numbers, most] if is_valid(sent, each)])


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
LACKING = {
    *("minLength", "maxLength", "uniqueItems", "contains", "dependentRequired", "not"),
    *("minProperties", "maxProperties", "patternProperties"),
}


def relaxed(schema: Any) -> Any:
    """Return *schema* without what strict mode cannot express."""
    if not isinstance(schema, dict):
        return schema
    node = {key: each for key, each in cast(Json, schema).items() if key not in LACKING}
    if "(?" in node.get("pattern", ""):
        del node["pattern"]
    if "patternProperties" in schema:
        node.pop("additionalProperties", None)
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    for key in ("items", "additionalProperties", "if", "then", "else"):
        if key in node:
            node[key] = relaxed(node[key])
    for key in ("anyOf", "allOf", "prefixItems"):
        if key in node:
            node[key] = [relaxed(each) for each in node[key]]
    for key in ("properties", "$defs", "definitions", "dependentSchemas"):
        if key in node:
            node[key] = {name: relaxed(each) for name, each in node[key].items()}
    return node


# --- What is sent.


def test_there_are_enough_cases_and_each_is_what_it_says() -> None:
    assert len(USABLE) >= 40
    assert len(IMPOSSIBLE) >= 10
    for case in USABLE:
        assert len(case["good"]) >= 2, case["name"]
        assert case["bad"] or case["schema"] == {}, case["name"]
        for answer in case["good"]:
            assert not problems(case["schema"], answer), case["name"]
        for answer in case["bad"]:
            assert problems(case["schema"], answer), case["name"]


@usable
def test_what_is_sent_obeys_every_rule_of_strict_mode(case: Json) -> None:
    check_schema(case["schema"])
    before = dumped(case["schema"])
    sent = make_strict(case["schema"]).schema
    assert breaches(sent) == []
    Draft202012Validator.check_schema(sent)
    assert dumped(case["schema"]) == before
    defined = {f"#/$defs/{name}" for name in sent.get("$defs", {})}
    assert defined == {*referenced(sent)} - {"#"}


@usable
def test_a_strict_schema_is_not_rewritten_again(case: Json) -> None:
    sent = make_strict(case["schema"]).schema
    assert make_strict(sent).schema is sent


@pytest.mark.parametrize("case", STRICT, ids=[case["name"] for case in STRICT])
def test_a_strict_schema_is_sent_byte_for_byte(case: Json) -> None:
    assert json.dumps(make_strict(case["schema"]).schema) == json.dumps(case["schema"])


# --- The way back.


@usable
def test_a_good_answer_in_the_callers_form_is_left_as_it_is(case: Json) -> None:
    strict = make_strict(case["schema"])
    for answer in case["good"]:
        assert dumped(strict.restore(answer)) == dumped(answer)


@usable
def test_a_good_answer_can_be_said_and_comes_back(case: Json) -> None:
    strict = make_strict(case["schema"])
    said = 0
    for answer in case["good"]:
        try:
            sent = encoded(answer, strict)
        except Unsayable:
            assert case["name"] in CLOSED_OUT, answer
            continue
        said += 1
        assert is_valid(strict.schema, sent)
        restored = strict.restore(sent)
        assert comes_back(restored, answer), restored
        assert not problems(case["schema"], restored)
    assert said


@usable
def test_a_bad_answer_stays_bad(case: Json) -> None:
    strict = make_strict(case["schema"])
    for answer in case["bad"]:
        assert problems(case["schema"], strict.restore(answer)), answer


@usable
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_whatever_strict_mode_lets_through_comes_back_valid(
    data: st.DataObject, case: Json
) -> None:
    strict = make_strict(case["schema"])
    sent = data.draw(answers(strict.schema, strict.schema))
    assert is_valid(strict.schema, sent)
    try:
        restored = strict.restore(sent)
    except Ambiguous as error:
        assert "the key " in str(error)  # noqa: PT017 - most answers raise nothing
        return
    assert not problems(relaxed(case["schema"]), restored)


@settings(max_examples=100, deadline=None)
@given(case=st.sampled_from(USABLE), answer=JSON)
def test_any_answer_at_all_is_restored_without_an_error(case: Json, answer: object) -> None:
    strict = make_strict(case["schema"])
    try:
        once = strict.restore(answer)
    except Ambiguous:
        return
    if not problems(case["schema"], once) and "JSON text" not in dumped(strict.schema):
        assert dumped(strict.restore(once)) == dumped(once)


OPTIONAL: Json = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}, "c": {}},
}


def test_null_stands_for_leaving_out_where_the_caller_takes_no_null() -> None:
    restore = make_strict(OPTIONAL).restore
    assert restore({"a": None, "b": None, "c": None}) == {"b": None, "c": None}
    assert restore({"a": "x", "b": "y", "c": "[1]"}) == {"a": "x", "b": "y", "c": [1]}


def test_null_stays_where_a_property_is_required() -> None:
    strict = make_strict(OPTIONAL | {"required": ["a"]})
    assert strict.restore({"a": None, "b": "y"}) == {"a": None, "b": "y"}


def test_json_text_that_is_none_stays_text() -> None:
    strict = make_strict({"type": "object", "properties": {"a": {}, "o": {"type": "object"}}})
    assert strict.restore({"a": "plain words", "o": "[1]"}) == {"a": "plain words", "o": "[1]"}
    assert strict.restore({"a": '"quoted"', "o": '{"x": 1}'}) == {"a": "quoted", "o": {"x": 1}}


def test_the_branch_is_chosen_by_what_was_sent() -> None:
    entry = {"type": "object", "properties": {"key": {}, "value": {"type": "string"}}}
    numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
    lists = {"type": "array", "items": entry | {"required": ["key", "value"]}}
    for options in ([numbers, lists], [lists, numbers]):
        strict = make_strict({"anyOf": options})
        assert strict.restore({"answer": [{"key": "a", "value": 1}]}) == {"a": 1}
        of_words = {"answer": [{"key": '"a"', "value": "b"}]}
        assert strict.restore(of_words) == [{"key": "a", "value": "b"}]


BRANCHES: list[tuple[Json, Json, object, object]] = [
    (
        {"type": "object", "propertyNames": {"enum": ["a"]}},
        {"type": "object", "patternProperties": {"^b": {"type": "string"}}},
        [{"key": "b", "value": "1"}],
        {"b": "1"},
    ),
    (
        {"type": "array", "maxItems": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 2},
        ["1", "2"],
        ["1", "2"],
    ),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
        of_properties(a={"type": "string"}, c={}) | {"required": ["a"]},
        {"a": "1"},
        {"a": "1"},
    ),
    (
        {"type": "object", "minProperties": 2, "additionalProperties": {}, "properties": {}}
        | {"propertyNames": True},
        {"type": "object", "additionalProperties": {"type": "string"}},
        [{"key": "a", "value": "1"}],
        {"a": "1"},
    ),
    (
        {"type": "array", "prefixItems": [{}, {"type": "integer"}], "minItems": 2},
        {"type": "array", "prefixItems": [{"type": "string"}, {"const": "x"}], "minItems": 2},
        {"item_0": "1", "item_1": "x"},
        ["1", "x"],
    ),
]


@pytest.mark.parametrize(
    ("first", "second", "sent", "restored"),
    BRANCHES,
    ids=["keys", "lengths", "required", "numbers of keys", "places"],
)
def test_a_branch_fits_only_as_a_whole(
    first: Json, second: Json, sent: object, restored: object
) -> None:
    assert make_strict({"anyOf": [first, second]}).restore({"answer": sent}) == restored


@pytest.mark.parametrize(
    "entries",
    [
        [{"key": "a"}],
        [{"key": 1, "value": 2}],
        [{"key": "a", "value": 1, "more": 2}],
        ["a", 1],
        [{"key": "a", "value": 1}, None],
    ],
    ids=str,
)
def test_a_list_that_holds_no_entries_is_left_as_it_is(entries: object) -> None:
    strict = make_strict({"type": "object", "additionalProperties": {"type": "integer"}})
    assert strict.restore({"answer": entries}) == entries


def test_alternatives_that_lead_to_each_other_take_no_null() -> None:
    schema = of_properties(p={"$ref": "#/$defs/a"})
    one, two = ({"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "integer"}]} for name in "ba")
    restore = make_strict(schema | {"$defs": {"a": one, "b": two}}).restore
    assert restore({"p": None}) == {}


def test_json_text_that_is_none_of_the_values_stays_text() -> None:
    schema = of_properties(shape={"enum": [{"w": 1}, [1, 2]]})
    restore = make_strict(schema).restore
    assert restore({"shape": '{"w": 1}'}) == {"shape": {"w": 1}}
    assert restore({"shape": '{"w": 2}'}) == {"shape": '{"w": 2}'}


@pytest.mark.parametrize(
    "number",
    [10**400, 10**5000, float("inf"), float("nan")],
    ids=["large", "larger", "infinite", "none"],
)
def test_a_number_too_large_to_be_divided_is_left_as_it_is(number: float) -> None:
    schema: Json = {"anyOf": [{"type": "number", "multipleOf": 0.1}, {"type": "string"}]}
    assert make_strict(schema).restore({"answer": number}) is number


@settings(max_examples=200, deadline=None)
@given(
    value=st.none() | st.booleans() | st.integers(-3, 9) | st.floats(-3, 9) | st.sampled_from("ab"),
    scalar=st.sampled_from(
        [
            *({"type": kind} for kind in ALLOWED if kind not in ("object", "array")),
            {"type": "integer", "minimum": 1, "maximum": 3},
            {"type": ["number", "null"], "exclusiveMinimum": 1, "exclusiveMaximum": 3},
            {"type": "number", "multipleOf": 0.25},
            {"type": "integer", "multipleOf": 3},
            {"type": "integer", "enum": [1, 2]},
            {"type": "boolean", "const": True},
            {"type": "string", "pattern": "^a"},
            {"type": "string", "enum": ["b"]},
        ]
    ),
)
def test_a_scalar_fits_exactly_if_it_is_valid(value: object, scalar: Json) -> None:
    """Told by the branch that is taken: one turns text into data, the other leaves it."""
    entry = of_properties(v=scalar, t={}) | {"required": ["v", "t"]}
    other = of_properties(v={}, t=TEXT) | {"required": ["v", "t"]}
    restored = make_strict({"anyOf": [entry, other]}).restore({"answer": {"v": value, "t": "1"}})
    assert cast(Json, restored)["t"] == (1 if is_valid(scalar, value) else "1")


def test_an_answer_that_looks_wrapped_but_is_the_callers_own_is_left() -> None:
    schema: Json = {
        "anyOf": [OPTIONAL | {"properties": {"answer": {"type": "integer"}}}, {"const": 1}]
    }
    restore = make_strict(schema).restore
    assert restore({"answer": {"answer": 5}}) == {"answer": 5}
    assert restore({"answer": 5}) == {"answer": 5}
    assert restore({"answer": 1}) == 1


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("b", 1), ("c", 1), ("b", 2)], '$.other_entries: the key "b" is in key twice'),
        ([("a", 3)], '$.other_entries: the key "a" is also a property of the object'),
        ([("z", 3)], '$.other_entries: the key "z" is also a property of the object'),
        ([("n", 3)], '$.other_entries: the key "n" is also a property of the object'),
    ],
)
def test_an_entry_never_replaces_another_one_or_a_property(
    entries: list[tuple[str, int]], problem: str
) -> None:
    schema: Json = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "n": {"type": "integer"}},
        "additionalProperties": {"type": "integer"},
    }
    sent = [{"key": key, "value": value} for key, value in entries]
    with pytest.raises(Ambiguous) as caught:
        make_strict(schema).restore({"a": "x", "n": None, "z": 1, "other_entries": sent})
    assert caught.value.problems == [problem]


@pytest.mark.parametrize("optional", [True, False])
def test_a_key_twice_is_found_behind_null_and_in_lists(optional: bool) -> None:
    free: Json = {"type": "object", "additionalProperties": {"type": "integer"}}
    either = {"anyOf": [free, {"type": "null"}]} if optional else free
    restore = make_strict(of_properties(a={"type": "array", "items": either})).restore
    twice = [{"key": "b", "value": 1}] * 2
    with pytest.raises(Ambiguous, match=r"\$\.a\[1\]: the key"):
        restore({"a": [[], twice]})
    assert restore({"a": [[], twice[:1]]}) == {"a": [{}, {"b": 1}]}


def test_a_property_that_refers_to_what_cannot_be_is_left_out() -> None:
    never = {"type": "string", "enum": [1]}
    chain = of_properties(x={"$ref": "#/$defs/never"}) | {"required": ["x"]}
    defined: Json = {"$defs": {"never": never, "chain": chain}}
    for name in ("never", "chain"):
        schema = of_properties(a={"$ref": f"#/$defs/{name}"}, b={"type": "string"}) | defined
        strict = make_strict(schema)
        assert [*strict.schema["properties"]] == ["b"]
        assert strict.restore({"b": "x"}) == {"b": "x"}
        in_list = of_properties(a={"type": "array", "items": {"$ref": f"#/$defs/{name}"}}) | defined
        assert make_strict(in_list).schema["properties"]["a"]["anyOf"][0]["maxItems"] == 0
        assert refusal(schema | {"required": ["a"]}).path == "$.$defs.never" or name == "chain"


# --- What the model is told in words.


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ({"type": "string", "minLength": 2, "maxLength": 9}, "(minLength 2; maxLength 9)"),
        ({"type": "string", "format": "uri"}, '(format "uri")'),
        ({"type": "string", "pattern": "^(?!x)"}, '(pattern "^(?!x)")'),
        ({"type": "string", "pattern": r"(.)\1"}, '(pattern "(.)\\\\1")'),
        ({"type": "array", "uniqueItems": True, "items": {"type": "null"}}, "(no two items alike)"),
        ({"type": "integer", "not": {"const": 3}}, "(none of [3])"),
        ({"type": "integer", "not": {"minimum": 3}}, '(not valid against {"minimum":3})'),
        ({"type": "string", "description": "A name", "default": "x"}, 'A name. (by default "x")'),
    ],
)
def test_what_strict_mode_lacks_is_told_in_words(inner: Json, told: str) -> None:
    schema: Json = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    found = make_strict(schema).schema["properties"]["a"]
    assert found["description"].replace("A name (", "A name. (") == told


@pytest.mark.parametrize("pattern", [r"^(?:a|b)\(\?=$", r"^\d+\\$", "^[a-z]+$"])
def test_a_pattern_that_openai_takes_is_sent(pattern: str) -> None:
    schema: Json = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    assert make_strict(schema).schema["properties"]["a"]["pattern"] == pattern


def test_words_beside_a_reference_are_told_by_what_holds_it() -> None:
    point: Json = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    place = {"$ref": "#/$defs/point", "description": "Where it is"}
    schema: Json = {
        "type": "object",
        "properties": {"here": place, "there": place},
        "required": ["here"],
        "$defs": {"point": point},
    }
    sent = make_strict(schema).schema
    assert sent["properties"]["here"] == {"$ref": "#/$defs/point"}
    assert sent["description"] == "(here: Where it is)"
    assert sent["properties"]["there"]["description"] == "Where it is"


def test_a_list_of_equal_places_stays_a_list() -> None:
    point = {"type": "array", "prefixItems": [{"type": "number"}] * 2}
    schema = of_properties(a=point | {"minItems": 2}, b=point | {"maxItems": 1}, c=point)
    properties = make_strict(schema | {"required": ["a", "b", "c"]}).schema["properties"]
    numbers: Json = {"type": "array", "items": {"type": "number"}}
    assert properties["a"] == numbers | {"minItems": 2, "maxItems": 2}
    assert properties["b"] == numbers | {"maxItems": 1}
    assert properties["c"] == numbers | {"maxItems": 2}


def test_values_that_other_keywords_exclude_are_not_sent() -> None:
    schema = of_properties(a={"enum": [1, 5, 9, "x"], "minimum": 2, "not": {"enum": [9]}})
    sent = make_strict(schema | {"required": ["a"]}).schema["properties"]["a"]
    five = {"type": "integer", "enum": [5]}
    assert sent["anyOf"] == [five, {"type": "string", "enum": ["x"]}]


def test_values_are_excluded_from_each_alternative() -> None:
    schema: Json = {"anyOf": [{"enum": [1, 2]}, {"enum": ["a"]}], "not": {"const": 1}}
    one, other = make_strict(schema).schema["properties"]["answer"]["anyOf"]
    assert (one["enum"], other["enum"]) == ([2], ["a"])


SENT: list[tuple[str, Json, Json]] = [
    (
        "bounds and types of two",
        {
            "allOf": [
                {"type": "number", "minimum": 1, "maximum": 9},
                {"type": ["integer", "string"], "minimum": 3, "maximum": 12},
            ]
        },
        {"type": "integer", "minimum": 3, "maximum": 9},
    ),
    (
        "the narrower of two types",
        {"allOf": [{"type": ["integer", "null"]}, {"type": "number", "minimum": 0}]},
        {"type": "integer", "minimum": 0},
    ),
    (
        "multiples of two",
        {"allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}]},
        {"type": "integer", "multipleOf": 12},
    ),
    (
        "what is unevaluated",
        {"allOf": [{"properties": {"a": TEXT}, "required": ["a"]}], "unevaluatedProperties": False},
        CLOSED | {"properties": {"a": TEXT}, "required": ["a"]},
    ),
    (
        "a name that only a pattern allows",
        CLOSED | {"patternProperties": {"^x": INTEGER}, "required": ["x1"]},
        CLOSED
        | {
            "properties": {
                "x1": INTEGER,
                "other_entries": {
                    "type": "array",
                    "description": "The further entries of this object, each key once.",
                    "items": CLOSED
                    | {
                        "properties": {
                            "key": {"type": "string", "pattern": "^x"},
                            "value": INTEGER,
                        },
                        "required": ["key", "value"],
                    },
                },
            },
            "required": ["x1", "other_entries"],
        },
    ),
    (
        "the least of a map",
        {"type": "object", "additionalProperties": INTEGER, "minProperties": 2},
        {
            "type": "array",
            "description": "The entries of an object, each key once. (minProperties 2)",
            "items": CLOSED
            | {"properties": {"key": TEXT, "value": INTEGER}, "required": ["key", "value"]},
            "minItems": 2,
        },
    ),
    (
        "the least of a tuple",
        {"type": "array", "prefixItems": [TEXT, INTEGER], "items": TEXT, "minItems": 4},
        CLOSED
        | {
            "description": "A list, its items in this order.",
            "properties": {
                "item_0": TEXT,
                "item_1": INTEGER,
                "further_items": {"type": "array", "items": TEXT, "minItems": 2},
            },
            "required": ["item_0", "item_1", "further_items"],
        },
    ),
    (
        "a single alternative left, which is a reference",
        {"description": "d", "anyOf": [{"$ref": "#/$defs/o"}, False]},
        {"$ref": "#/$defs/o"},
    ),
    (
        "words once, in each alternative",
        {"type": "string", "maxLength": 5, "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]},
        {"anyOf": [TEXT | {"pattern": f"^{x}", "description": "(maxLength 5)"} for x in "ab"]},
    ),
    (
        "no words that say nothing",
        {"type": "array", "items": INTEGER, "uniqueItems": False, "not": False, "default": None},
        {"type": "array", "items": INTEGER},
    ),
    (
        "the two sides of a dependent schema",
        {
            "type": "object",
            "properties": {"a": TEXT},
            "dependentSchemas": {"a": {"properties": {"b": TEXT}, "required": ["b"]}},
        },
        {
            "anyOf": [
                CLOSED | {"properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"]},
                CLOSED | {"properties": {}, "required": []},
            ]
        },
    ),
]


@pytest.mark.parametrize(
    ("schema", "sent"), [each[1:] for each in SENT], ids=[each[0] for each in SENT]
)  # fmt: skip
def test_what_is_said_in_several_places_is_sent_as_one(schema: Json, sent: Json) -> None:
    definitions = {"$defs": {"o": CLOSED | {"properties": {"x": TEXT}, "required": ["x"]}}}
    root = of_properties(a=schema) | {"required": ["a"]} | definitions
    found = make_strict(root).schema["properties"]["a"]
    assert json.loads(dumped(found)) == sent


def test_null_is_not_added_to_what_has_it() -> None:
    either = {"anyOf": [INTEGER, {"type": "null"}]}
    assert make_strict(of_properties(a=either)).schema["properties"]["a"] == either
    several = {"anyOf": [INTEGER, {"type": ["string", "null"]}]}
    assert make_strict(of_properties(a=several)).schema["properties"]["a"] == several


def test_a_path_of_long_names_is_cut() -> None:
    name = "x" * 10_000
    never = {name: {"type": "string", "enum": [1]}}
    referring = of_properties(a={"$ref": f"#/$defs/{name}"}) | {"required": ["a"]}
    error = refusal(referring | {"$defs": never})
    assert len(error.path) < 600
    error = refusal(of_properties(**never) | {"required": [name]})
    assert len(error.path) < 600


def test_a_condition_on_a_known_value_is_sent_exactly() -> None:
    case = next(case for case in USABLE if case["name"] == "if, then, else")
    first, second = make_strict(case["schema"]).schema["properties"]["answer"]["anyOf"]
    assert first["properties"]["kind"]["enum"] == ["card"]
    assert second["properties"]["kind"]["enum"] == ["cash"]


# --- What is refused.


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=[case["name"] for case in IMPOSSIBLE])
def test_what_cannot_be_is_refused_with_its_place_and_the_reason(case: Json) -> None:
    check_schema(case["schema"])
    error = refusal(case["schema"])
    assert error.path == case["path"]
    assert case["says"] in error.problem
    assert len(error.problem) < 400


@pytest.mark.parametrize(
    ("hidden", "path", "says"),
    [
        ({"properties": {"x": {"$ref": "#/nope"}}}, "$.components.a.properties.x.$ref", "not in"),
        ({"properties": []}, "$.components.a", "not a JSON Schema"),
        ([1], "$.components.a", "not a JSON Schema"),
        ({"type": "strng"}, "$.components.a", "not a JSON Schema"),
    ],
    ids=str,
)
def test_what_only_a_reference_reaches_is_checked_too(hidden: Any, path: str, says: str) -> None:
    schema = of_properties(a={"items": {"$ref": "#/components/a"}})
    error = refusal(schema | {"components": {"a": hidden}})
    assert error.path == path
    assert says in error.problem


@pytest.mark.parametrize(
    ("schema", "path", "says"),
    [
        (
            of_properties(a=of_properties(**{f"p{i}": {"type": "null"} for i in range(5_000)})),
            "$",
            "5,000 properties",
        ),
        (of_properties(a={"enum": [*range(1_001)]}), "$.properties.a", "1,000 enum values"),
        (
            of_properties(a={"enum": [f"{i:060}" for i in range(251)]}),
            "$.properties.a",
            "15,000 characters",
        ),
        (of_properties(a={"const": "x" * 120_001}), "$.properties.a", "120,000 characters"),
        (of_properties(**{"x" * 120_001: {"type": "null"}}), "$", "120,000 characters"),
    ],
    ids=["properties", "values", "a long enum", "a long constant", "a long name"],
)
def test_what_is_larger_than_openai_takes_is_refused(schema: Json, path: str, says: str) -> None:
    error = refusal(schema)
    assert error.path == path
    assert says in error.problem


def test_what_is_as_large_as_openai_takes_is_sent() -> None:
    inner = of_properties(**{f"p{i}": {"type": "null"} for i in range(4_998)})
    enum = {"enum": [f"{i:060}" for i in range(250)]}
    sent = make_strict(of_properties(a=inner, b=enum)).schema
    assert breaches(sent) == []
    assert breaches(make_strict({"enum": [*range(1_000)]}).schema) == []


def test_ten_levels_are_sent_and_more_by_a_reference() -> None:
    schema: Json = {"type": "string"}
    for _ in range(10):
        schema = of_properties(a=schema) | {"required": ["a"]}
    assert breaches(make_strict(schema).schema) == []
    referring = of_properties(a={"$ref": "#/$defs/b"}) | {"$defs": {"b": schema}}
    assert breaches(make_strict(referring).schema) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "integer"}},
    ],
    ids=["a map", "a tuple"],
)
def test_what_is_sent_in_two_levels_counts_as_two(schema: Json) -> None:
    for levels in (8, 1):
        for _ in range(levels):
            schema = of_properties(a=schema) | {"required": ["a"]}
        if levels == 8:
            assert breaches(make_strict(schema).schema) == []
    assert "more than 10 levels" in refusal(schema).problem


def nested(key: str, *, listed: bool = False) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(5_000):
        schema = {key: [schema] if listed else schema}
    return schema


BOMBS: dict[str, Json] = {
    "items": nested("items"),
    "anyOf": nested("anyOf", listed=True),
    "allOf": nested("allOf", listed=True),
    "a value": {"const": nested("a")},
    "what only a reference reaches": {"$ref": "#/hidden", "hidden": nested("items")},
    "two values": {"enum": [nested("a"), nested("b", listed=True)]},
    "doubling allOf": {
        "$ref": "#/$defs/d0",
        "$defs": {
            f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
            for i in range(16)
        }
        | {"d16": {"type": "string"}},
    },
    "doubling properties": {
        "$ref": "#/$defs/d0",
        "$defs": {
            f"d{i}": {
                "allOf": [
                    {"properties": {p: {"$ref": f"#/$defs/d{i + 1}", "minProperties": 1}}}
                    for p in ("a", "b", "c", "d", "e")
                ]
            }
            for i in range(9)
        }
        | {"d9": {"type": "object", "properties": {"z": {"type": "null"}}}},
    },
    "doubling alternatives": {
        "$ref": "#/$defs/d0",
        "$defs": {
            f"d{i}": {
                "type": "object",
                "anyOf": [
                    {"properties": {p: {"$ref": f"#/$defs/d{i + 1}", "minProperties": 1}}}
                    for p in ("a", "b", "c", "d", "e", "f")
                ],
            }
            for i in range(9)
        }
        | {"d9": {"type": "object", "properties": {"z": {"type": "null"}}}},
    },
    "conditions": {
        "type": "object",
        "allOf": [{"if": {"required": [f"a{i}"]}, "then": {"required": ["b"]}} for i in range(999)],
    },
    "dependent schemas": {
        "type": "object",
        "dependentSchemas": {f"a{i}": {"required": [f"b{i}"]} for i in range(40)},
    },
    "many properties": of_properties(**{f"p{i}": Json() for i in range(100_000)}),
    "many parts": {"allOf": [{"properties": {f"p{i}": {}}} for i in range(4_000)]},
}


HARMLESS: dict[str, Json] = {
    "not": nested("not") | {"type": "null"},
    "if": {"if": nested("if"), "then": {"type": "string"}},
    "an unknown keyword": nested("unknown") | {"type": "null"},
    "a default": {"type": "null", "default": nested("a")},
    "many conditions": of_properties(
        kind={"enum": [*range(200)]},
    )
    | {
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": i}}},
                "then": {"properties": {f"of_{i}": {"type": "null"}}},
            }
            for i in range(60)
        ]
    },
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_told_in_words_may_be_as_deep_as_it_likes(name: str) -> None:
    assert breaches(make_strict(HARMLESS[name]).schema) == []


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon(name: str) -> None:
    begun = time.process_time()
    assert refusal(BOMBS[name]).path.startswith("$")
    assert time.process_time() - begun < 5


def test_two_thousand_references_in_a_row_are_followed() -> None:
    chain: Json = {
        f"d{i}": {"type": "object", "properties": {"n": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(2_000)
    }
    schema: Json = {"$ref": "#/$defs/d0", "$defs": chain | {"d2000": {"type": "null"}}}
    assert breaches(make_strict(schema).schema) == []


def test_an_answer_of_many_alternatives_inside_each_other_is_restored_soon() -> None:
    option: Json = {"type": "object", "required": ["x", "k"], "additionalProperties": False}
    schema: Json = {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {
                "anyOf": [
                    option | {"properties": {"x": {"$ref": "#/$defs/a"}, "k": {"const": k}}}
                    for k in range(3)
                ]
                + [{"type": "object", "additionalProperties": {"type": "integer"}}]
            }
        },
    }
    answer: Any = [{"key": "n", "value": 1}]
    own: Any = {"n": 1}
    for _ in range(40):
        answer, own = {"x": answer, "k": 2}, {"x": own, "k": 2}
    begun = time.process_time()
    assert make_strict(schema).restore({"answer": answer}) == own
    assert time.process_time() - begun < 5


def test_an_answer_too_deep_to_be_walked_is_left_as_it_is() -> None:
    case = next(case for case in USABLE if case["name"] == "pydantic: recursive tree")
    answer: Any = {"name": "leaf", "size": None, "children": None}
    for _ in range(100_000):
        answer = {"name": "n", "size": None, "children": [answer]}
    assert make_strict(case["schema"]).restore(answer) is answer
