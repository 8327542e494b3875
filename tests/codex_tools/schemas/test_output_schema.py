"""The caller's output schema: what is refused, and how an answer is held against it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from codex_tools.codex.errors import CodexError, InvalidOutputSchema, OutputMismatch
from codex_tools.codex.json_object import Json
from codex_tools.codex.turn_result import TurnResult
from codex_tools.schemas.output_schema import Output, check_schema, find_targets
from codex_tools.schemas.validation import (
    CHECKS_LIMIT,
    TooManyChecks,
    Validator,
    count_checks,
    problems,
)


def read_output(schema: Json, turn: TurnResult) -> object:
    return Output.of(schema, 0).read(turn)


VERDICT: Json = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["ship", "fix"]},
        "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}},
    },
    "required": ["verdict"],
    "additionalProperties": False,
    "$defs": {"note": {"type": "string", "minLength": 2}},
}


def answer(value: object) -> TurnResult:
    text = value if isinstance(value, str) else json.dumps(value)
    return TurnResult(thread_id="t", final_response=text)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        VERDICT,
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "string"},
        {"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}},
        {"$anchor": "top", "properties": {"a": {"$ref": "#top"}}},
        {"$id": "http://a.b/s", "$ref": "http://a.b/s#/$defs/a", "$defs": {"a": {}}},
        {"properties": {"$ref": {"type": "string"}}},
        {"properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}},
        {"unknown keyword": [1, {"$ref": 5}]},
        {"items": {"$id": "http://a.b/s", "$ref": "#/$defs/a", "$defs": {"a": {}}}},
    ],
)  # fmt: skip
def test_a_json_schema_is_accepted(schema: Json) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"$ref": "#/nope"}]},
        {"const": {"$ref": "no reference at all"}},
        {"examples": [{"$ref": "#/nope"}]},
    ],
)
def test_a_reference_inside_plain_data_is_none(schema: Json) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "path", "problem"),
    [
        ({"type": "strng"}, "$.type", "strng"),
        ({"properties": {"a": {"type": 7}}}, "$.properties.a.type", "7"),
        ({"required": "a"}, "$.required", "'a' is not of type 'array'"),
        ({"items": [{"type": "string"}]}, "$.items", "not of type 'object', 'boolean'"),
        ({"minLength": -1}, "$.minLength", "-1"),
        ({"multipleOf": 0}, "$.multipleOf", "0"),
        ({"pattern": "("}, "$.pattern", "'(' is not a 'regex'"),
        ({"patternProperties": {"[": {}}}, "$.patternProperties", "'['"),
        ({"$ref": "#/nope"}, "$.$ref", "'#/nope' cannot be resolved"),
        ({"items": {"anyOf": [{}, {"$ref": "#/a"}]}}, "$.items.anyOf[1].$ref", "'#/a' cannot be"),
        ({"$dynamicRef": "#none"}, "$.$dynamicRef", "'#none' cannot be resolved"),
        ({"$ref": "https://example.com/schema.json"}, "$.$ref", "never fetched"),
        ({"$ref": "file:///etc/passwd"}, "$.$ref", "never fetched"),
        ({"$ref": "http://[::1"}, "$.$ref", "cannot be resolved"),
        ({"title": "abc", "$ref": "#/title/x"}, "$.$ref", "cannot be resolved"),
        ({"required": ["a"], "$ref": "#/required/foo"}, "$.$ref", "cannot be resolved"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(schema: Json, path: str, problem: str) -> None:
    with pytest.raises(InvalidOutputSchema) as caught:
        check_schema(schema)
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_a_long_complaint_is_cut() -> None:
    with pytest.raises(InvalidOutputSchema) as caught:
        check_schema({"type": "x" * 100_000})
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"title": "x", "properties": {"a": {"$ref": "#/title"}}}, {"a": 1}),
        ({"$ref": "#"}, {}),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, {"a": 1}),
        ({"$ref": "#/x", "x": {"$ref": "#/y"}, "y": {"$ref": "#/x"}}, 1),
        ({"$defs": {"x": {}}, "properties": {"a": {"$id": "b", "$ref": "#/$defs/x"}}}, {"a": 1}),
    ],
    ids=["no schema", "itself", "itself below", "circle", "other base"],
)  # fmt: skip
def test_a_schema_that_cannot_be_applied_is_the_caller_s_fault(schema: Json, value: object) -> None:
    def apply() -> None:
        check_schema(schema)
        read_output(schema, answer(value))

    with pytest.raises(CodexError) as caught:
        apply()
    assert caught.value.kind in ("invalid_output_schema", "output_mismatch")


@pytest.mark.parametrize(
    "value",
    [{"verdict": "ship"}, {"verdict": "fix", "notes": []}, {"verdict": "fix", "notes": ["no"]}],
)
def test_an_answer_that_fits_comes_back_as_data(value: Json) -> None:
    assert read_output(VERDICT, answer(value)) == value


def test_an_answer_may_be_any_json() -> None:
    for text in ("null", "false", "0", '""', "[]", ' "x"\n'):
        assert read_output({}, answer(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, '$: "verdict" is a required property'),
        ({"verdict": "hold"}, '$.verdict: "hold" is not one of "ship" or "fix"'),
        ({"verdict": "fix", "notes": ["no", "x"]}, '$.notes[1]: "x" is shorter than 2 characters'),
        ({"verdict": "fix", "more": 1}, "$: Additional properties are not allowed"),
        ([], '$: [] is not of type "object"'),
    ],
)
def test_an_answer_that_does_not_fit_is_told_why(value: object, problem: str) -> None:
    with pytest.raises(OutputMismatch) as caught:
        read_output(VERDICT, answer(value))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
    assert caught.value.turn.thread_id == "t"


@pytest.mark.parametrize("text", [None, "", "not json", "```json\n{}\n```", "{}{}", '{"a":NaN}'])
def test_an_answer_that_is_no_json_is_a_mismatch(text: str | None) -> None:
    with pytest.raises(OutputMismatch, match=r"\$: the answer is not JSON"):
        read_output({}, TurnResult(final_response=text))


BIG = 123456789012345678901234567890


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'{{"n": {BIG}}}', {"n": BIG}),
        (f'{{"n": -{BIG}}}', {"n": -BIG}),
        ('{"n": 9007199254740993.0}', {"n": 9007199254740993}),
        ('{"n": 1e23}', {"n": 10**23}),
        ('{"n": 18446744073709551616}', {"n": 2**64}),
        ('{"n": -0}', {"n": 0}),
        ('{"n": 0.1}', {"n": 0.1}),
        ('{"n": 3.14159265358979323846}', {"n": 3.141592653589793}),
        ('{"n": 0e-400}', {"n": 0.0}),
    ],
)
def test_a_number_keeps_its_value(text: str, value: object) -> None:
    schema: Json = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    found = read_output(schema, answer(text))
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"n": 1e400}', "too large for a double"),
        ('{"n": -1e400}', "too large for a double"),
        ('{"n": 1e-400}', "too small for a double"),
        ('{"n": 1' + "0" * 5000 + "}", "digits"),
        ('{"n": 1, "n": 2}', r'an object has the key "n" twice'),
        ('{"n": 1, "m": {"a": 1, "a": 1}}', r'an object has the key "a" twice'),
        ('{"n": Infinity}', "not JSON"),
    ],
)
def test_a_number_or_key_without_a_certain_value_is_a_mismatch(text: str, problem: str) -> None:
    with pytest.raises(OutputMismatch, match=problem):
        read_output({}, answer(text))
    if "JSON" not in problem:
        with pytest.raises(OutputMismatch, match=problem):
            read_output({}, answer({"answer": text}))  # JSON text within the answer.


def test_of_many_problems_eight_are_told_and_the_rest_counted() -> None:
    with pytest.raises(OutputMismatch) as caught:
        read_output({"items": {"type": "string"}}, answer(list(range(20))))
    assert len(caught.value.problems) == 9
    assert caught.value.problems[-1] == "and 12 more"


def test_a_problem_with_a_huge_value_is_cut() -> None:
    ((_, problem),) = problems({"type": "integer"}, "x" * 100_000)
    assert len(problem) <= 300


@pytest.mark.parametrize("depth", [400, 900, 1020])
def test_a_deep_answer_is_checked_or_refused_but_never_a_crash(depth: int) -> None:
    schema: Json = {"items": {"$ref": "#"}, "type": "array"}
    text = "[" * depth + "]" * depth
    with suppress(OutputMismatch):
        assert read_output(schema, TurnResult(final_response=text)) == json.loads(text)


BOMB: Json = {
    "$ref": "#/$defs/d0",
    "$defs": {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(60)
    }
    | {"d60": {"type": "object"}},
}
"""Its one object is checked 2 ** 60 times."""

TREE: Json = {
    "$ref": "#/$defs/e",
    "$defs": {
        "e": {"anyOf": [{"$ref": "#/$defs/add"}, {"$ref": "#/$defs/mul"}, {"type": "number"}]},
        "add": {"properties": {"left": {"$ref": "#/$defs/e"}}, "required": ["left", "add"]},
        "mul": {"properties": {"left": {"$ref": "#/$defs/e"}}, "required": ["left", "mul"]},
    },
}
"""What lies below *left* is checked twice at each level."""


def nested(depth: int) -> Json:
    value: Json = {"mul": 1, "left": 2}
    for _ in range(depth):
        value = {"mul": 1, "left": value}
    return value


def test_a_schema_that_would_take_for_ever_is_refused_at_once() -> None:
    with pytest.raises(InvalidOutputSchema, match="expand to more than"):
        check_schema(BOMB)


def test_an_answer_that_would_take_for_ever_is_a_mismatch_at_once() -> None:
    check_schema(TREE)
    targets = find_targets(TREE)
    assert count_checks(TREE, nested(5), targets) < CHECKS_LIMIT
    assert Validator(TREE).is_valid(nested(5))
    with pytest.raises(TooManyChecks):
        count_checks(TREE, nested(60), targets)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^(a+)+$", "a" * 50_000 + "b"),
        ("^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 50_000),
        ("^(?=(a+)+$)b", "a" * 5000 + "c"),
        (r"^(a+)+\1$", "a" * 5000 + "b"),
    ],
)
def test_no_pattern_takes_for_ever(pattern: str, text: str) -> None:
    for schema in (
        {"type": "string", "pattern": pattern},
        {"type": "object", "patternProperties": {pattern: {"type": "null"}}},
        {"type": "string", "enum": [text, "x"], "pattern": pattern},
    ):
        check_schema(schema)
        value = {text: 1} if schema["type"] == "object" else text
        Validator(schema).problems(value)
        with suppress(OutputMismatch, InvalidOutputSchema):
            read_output(schema, answer(value))


def test_thousands_of_objects_are_compared_in_no_time() -> None:
    schema: Json = {"type": "array", "uniqueItems": True}
    items = [{"a": n, "b": [str(n)]} for n in range(4000)]
    assert read_output(schema, answer(items)) == items
    with pytest.raises(OutputMismatch, match="non-unique"):
        read_output(schema, answer([*items, items[7]]))


def test_a_pattern_that_is_none_is_the_caller_s_fault() -> None:
    with pytest.raises(InvalidOutputSchema, match=r"at \$\.pattern"):
        check_schema({"type": "string", "pattern": "(a"})


def test_of_very_many_problems_only_the_first_is_told() -> None:
    schema: Json = {"type": "array", "items": {"type": "string"}}
    with pytest.raises(OutputMismatch) as caught:
        read_output(schema, answer(list(range(60_000))))
    assert caught.value.problems == ('$[0]: 0 is not of type "string"',)


def test_a_look_ahead_works_on_as_many_texts_as_people_use() -> None:
    schema: Json = {"type": "array", "items": {"type": "string", "pattern": r"^(?=.*\d)[a-z\d]+$"}}
    items = [f"name{n}" for n in range(2000)]
    assert read_output(schema, answer(items)) == items
