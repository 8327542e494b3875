"""Arguments as clients really send them, against each type of field."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from codex_tools.arguments import read_arguments
from codex_tools.codex.errors import InvalidArguments, PromptTooLarge
from codex_tools.codex.json_object import Json
from codex_tools.codex.record import Record
from codex_tools.resume import ResumeRequest
from codex_tools.run import RunRequest
from codex_tools.runs.review import read_target
from codex_tools.sessions import SessionsRequest
from codex_tools.tool import input_schema
from codex_tools.turn_options import TurnOptions
from codex_tools.usage import UsageRequest


class Mixed(Record):
    """One optional field of each type."""

    text: str | None = None
    whole: int = 7
    number: float | None = None
    switch: bool | None = None
    names: list[str] | None = None
    settings: dict[str, Any] | None = None
    mode: Literal["all", "any"] = "all"
    which: Literal["all", "none"] | list[str] = "all"


TAKEN: list[tuple[str, object, object]] = [
    ("whole", "20", 20),
    ("whole", "20.0", 20),
    ("whole", " 20\n", 20),
    ("whole", "2e1", 20),
    ("number", "600", 600.0),
    ("number", "0.5", 0.5),
    ("switch", "true", True),
    ("switch", "false", False),
    ("switch", "True", True),
    ("switch", "False", False),
    ("names", '["a", "b"]', ["a", "b"]),
    ("names", "[]", []),
    ("names", "a", ["a"]),
    ("names", "123", ["123"]),
    ("settings", '{"a": "1", "b": ["2", null]}', {"a": "1", "b": ["2", None]}),
    ("settings", '{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890}),
    ("mode", '"any"', "any"),
    ("which", '["a"]', ["a"]),
]


@pytest.mark.parametrize(("name", "sent", "taken"), TAKEN)
def test_a_string_of_the_right_type_is_taken_and_noted(
    name: str, sent: object, taken: object
) -> None:
    arguments = read_arguments(Mixed, {name: sent})
    assert getattr(arguments.request, name) == taken
    (warning,) = arguments.warnings
    assert warning.endswith(f": {name}.")


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("text", '{"a": 1}'),
        ("text", "123"),
        ("text", "null"),
        ("which", "none"),
        ("settings", {"a": '{"b": 1}', "c": "5", "d": None, "e": ""}),
        ("names", ["1", "[]", ""]),
    ],
)
def test_a_value_of_the_right_type_is_not_touched(name: str, sent: object) -> None:
    arguments = read_arguments(Mixed, {name: sent})
    assert getattr(arguments.request, name) == sent
    assert arguments.warnings == ()


@pytest.mark.parametrize("name", Mixed.model_fields)
@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_an_empty_text_are_as_if_left_out(name: str, nothing: object) -> None:
    arguments = read_arguments(Mixed, {name: nothing})
    assert arguments.request == Mixed()
    assert arguments.request.model_fields_set == set()
    assert arguments.warnings == ()


@pytest.mark.parametrize("name", ["whole", "number", "switch", "names", "settings"])
def test_null_as_a_string_is_left_out_where_no_text_is_expected(name: str) -> None:
    assert read_arguments(Mixed, {name: "null"}).request == Mixed()


def test_a_whole_number_with_a_point_is_an_integer_and_no_fault_of_the_client() -> None:
    arguments = read_arguments(Mixed, {"whole": 20.0})
    assert arguments.request.whole == 20
    assert arguments.warnings == ()


def test_one_note_names_all_strings() -> None:
    arguments = read_arguments(Mixed, {"whole": "1", "switch": "true", "number": 2.0})
    (warning,) = arguments.warnings
    assert "whole, switch" in warning
    assert "number" not in warning


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("whole", "600s"),
        ("whole", "20.5"),
        ("whole", 20.5),
        ("whole", True),
        ("whole", "true"),
        ("whole", float("inf")),
        ("number", "600s"),
        ("number", "NaN"),
        ("number", "Infinity"),
        ("number", "true"),
        ("number", '"600"'),
        ("switch", 1),
        ("switch", "1"),
        ("switch", "yes"),
        ("names", '["a"'),
        ("names", '{"a": 1}'),
        ("names", "[1]"),
        ("names", {"0": "a"}),
        ("settings", "low"),
        ("settings", "[]"),
        ("settings", "{'a': 1}"),
        ("mode", "Any"),
        ("mode", " any "),
        ("text", 5),
        ("text", ["a"]),
    ],
    ids=repr,
)
def test_another_type_is_refused_and_named(name: str, sent: object) -> None:
    with pytest.raises(InvalidArguments) as refused:
        read_arguments(Mixed, {name: sent})
    assert refused.value.message.startswith(name)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("settings", "[" * 900_000),
        ("settings", '{"a":' * 900 + "1" + "}" * 900),
        ("settings", '{"a": "' + "x" * 1_000_000 + '"}'),
        ("whole", "9" * 900_000),
        ("whole", "-" * 900_000),
        ("number", "9" * 4000),
        ("switch", "true" + " " * 2_000_000),
    ],
    ids=range(7),
)
def test_a_hostile_string_is_refused(name: str, sent: str) -> None:
    with pytest.raises(InvalidArguments) as refused:
        read_arguments(Mixed, {name: sent})
    assert len(refused.value.message) < 200


def test_unknown_arguments_are_refused_even_if_they_are_empty() -> None:
    with pytest.raises(InvalidArguments) as refused:
        read_arguments(Mixed, {"numbr": None, "whole": "1"})
    assert refused.value.message == "unknown argument 'numbr', did you mean 'number'?"


def test_the_limits_hold_for_converted_values_too() -> None:
    with pytest.raises(InvalidArguments, match="limit: input should be less than or equal to 100"):
        read_arguments(SessionsRequest, {"limit": "101"})
    with pytest.raises(InvalidArguments, match="timeout_s: input should be greater than 0"):
        read_arguments(TurnOptions, {"prompt": "x", "timeout_s": "0"})
    with pytest.raises(PromptTooLarge):
        read_arguments(TurnOptions, {"prompt": "x" * 1_000_001, "timeout_s": "1"})


REVIEWS: list[tuple[Json, Json]] = [
    ({"uncommitted": True, "base": None, "commit": "", "custom": False}, {"uncommitted": True}),
    ({"uncommitted": False, "base": "main", "commit": None}, {"base": "main"}),
    ({"commit": "HEAD~1", "base": ""}, {"commit": "HEAD~1"}),
]


@pytest.mark.parametrize(("sent", "meant"), REVIEWS)
def test_a_review_s_empty_keys_are_as_if_left_out(sent: Json, meant: Json) -> None:
    for review in (sent, json.dumps(sent)):
        assert read_target_of(review) == read_target_of(meant)


def read_target_of(review: object) -> object:
    request = read_arguments(RunRequest, {"review": review}).request
    return read_target(request.review or {})


@pytest.mark.parametrize("empty", [{}, {"base": "", "commit": None}, {"uncommitted": False}])
def test_an_empty_review_is_as_if_left_out(empty: Json) -> None:
    arguments: Json = {
        "prompt": "x",
        "review": empty,
        "config": {},
        "images": [],
    }
    assert read_arguments(RunRequest, arguments).request.review is None


def test_an_empty_schema_is_one_that_any_answer_satisfies() -> None:
    arguments: Json = {"prompt": "x", "output_schema": {}}
    assert read_arguments(RunRequest, arguments).request.output_schema == {}


def test_a_review_of_two_targets_is_refused() -> None:
    with pytest.raises(InvalidArguments, match="exactly one"):
        read_arguments(RunRequest, {"review": {"base": "a", "commit": "b"}})


EMPTY: dict[str, object] = {"object": {}, "array": [], "string": "", "boolean": False}
"""What a strict client's model sends where it means nothing."""


@pytest.mark.parametrize("model", [RunRequest, ResumeRequest, SessionsRequest, UsageRequest])
def test_each_argument_may_be_the_empty_value_of_its_type(model: type[Record]) -> None:
    arguments: Json = {"prompt": "x"} if "prompt" in model.model_fields else {}
    empty = {
        name: EMPTY[about["type"]]
        for name, about in input_schema(model)["properties"].items()
        if name not in (*arguments, "output_schema") and about.get("type") in EMPTY
    }
    plain = {"thread_id": "01a20000-0000-7000-8000-000000000009"}
    given = arguments | (plain if model is ResumeRequest else {})
    request = read_arguments(model, empty | given).request
    neutral: Json = {"images": [], "add_dirs": [], "config": {}, "web_search": False}
    wanted = read_arguments(model, given | {k: neutral[k] for k in neutral.keys() & empty}).request
    assert request.model_dump() == wanted.model_dump()
