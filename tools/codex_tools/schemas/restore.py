"""Convert an answer from the form of the sent schema to the form of the caller's schema.

A shape knows both forms of its part of an answer: the sent form, which is the one in
the schema that was sent, and the caller's form. A model that follows the sent schema
answers in the sent form. Values that have the caller's form already are left unchanged.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from types import NoneType
from typing import Any, TypeAlias, cast

import orjson

from codex_tools.codex.json_object import Json, NotExact, read_exactly
from codex_tools.schemas.json_text import show
from codex_tools.schemas.validation import pattern_validator

WRAPPER = "answer"
"""The property that holds an answer that is not an object."""
KEY, VALUE = "key", "value"
"""The properties of an entry; a list of entries replaces an object with unnamed keys."""


def place(i: int) -> str:
    """Return the property that holds item *i* of a list that is sent as an object."""
    return f"item_{i}"


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A scalar; both forms are the same."""

    sent: Json


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A value that is sent as JSON text; *texts* are the only possible ones, if known."""

    only_objects: bool = False
    texts: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A list whose items have one shape, with its least and greatest length."""

    item: Shape
    least: float = 0
    most: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """An object with unnamed keys, sent as a list of entries."""

    key: Shape
    value: Shape
    least: float = 0
    most: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A property of an object or an item of a tuple; *needed* if it is required."""

    shape: Shape
    needed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object with named keys.

    *others* is the property for unnamed keys and its shape, if they are sent too.
    *is_open* is true if the caller's schema allows unnamed keys.
    """

    members: Mapping[str, Member]
    is_open: bool
    others: tuple[str, Entries] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tuple:
    """A list with a shape for each item, sent as an object.

    *further* is the property for the items behind them and its shape, if there are any.
    """

    members: Sequence[Member]
    further: tuple[str, Array] | None


@dataclass(frozen=True, slots=True, eq=False)
class Union:
    """One of several shapes."""

    options: Sequence[Shape]


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """A reference to the shape with this name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Wrapped:
    """An answer that is not an object, sent as the only property of one."""

    shape: Shape


Shape: TypeAlias = "Leaf | Text | Array | Entries | Object | Tuple | Union | Ref | Wrapped"


@dataclass(frozen=True, slots=True)
class Fault:
    """Stands in a restored answer for a part whose value is not certain."""

    problem: str


def faults_in(value: object, path: str = "$") -> list[str]:
    """Return the problems of all faults in a restored answer, each with its JSON path."""
    match value:
        case Fault(problem):
            return [f"{path}: {problem}"]
        case dict():
            members = cast(Json, value).items()
            return [
                each for key, part in members for each in faults_in(part, f"{path}.{key[:100]}")
            ]
        case list():
            parts = enumerate(cast(list[object], value))
            return [each for i, part in parts for each in faults_in(part, f"{path}[{i}]")]
        case _:
            return []


class Fit(IntEnum):
    """How well a value fits a shape."""

    NONE = 0
    OWN = 1
    """At least a part of it has the caller's form."""
    SENT = 2
    """All of it has the sent form."""


Restored = tuple[object, Fit]
"""A value in the caller's form, and how well it fitted the shape."""


class Walk:
    """One conversion of an answer to the caller's form.

    The result for each pair of a shape and a value is remembered. Otherwise nested
    alternatives would be tried again for each outer alternative.
    """

    def __init__(self, named: Mapping[str, Shape]) -> None:
        self._named = named
        self.has_faults = False
        """True if any part was faulty, even one of an alternative that was not chosen."""
        self._known: dict[tuple[int, int], Restored] = {}

    def restore(self, shape: Shape, value: object) -> Restored:
        """Return *value* in the caller's form, and how well it fitted *shape*."""
        if not isinstance(value, dict | list):
            return self._restore(shape, value)
        # Ids are safe keys: the answer and the schema outlive this object.
        key = (id(shape), id(cast(object, value)))
        if key not in self._known:
            self._known[key] = self._restore(shape, cast(object, value))
        return self._known[key]

    def _restore(self, shape: Shape, value: object) -> Restored:
        match shape, value:
            case Leaf(sent), _:
                return value, Fit.SENT if _is_scalar(sent, value) else Fit.NONE
            case Text(), _:
                return self._read_text(shape, value)
            case Union(options), _:
                return self._best(options, value)
            case Ref(name), _:
                return self.restore(self._named[name], value)
            case Wrapped(inner), _:
                return self._unwrap(inner, value)
            case Array(), list():
                return self._array(shape, cast(list[object], value))
            case Entries(), list():
                return self._entries(shape, cast(list[object], value))
            case Entries(), dict():
                pairs = list(cast(Json, value).items())
                return self._pairs(shape, pairs, Fit.OWN)
            case Object(), dict():
                return self._object(shape, cast(Json, value))
            case Tuple(), dict():
                return self._places(shape, cast(Json, value))
            case Tuple(), list():
                return self._list(shape, cast(list[object], value))
            case _:
                return value, Fit.NONE

    def _best(self, options: Sequence[Shape], value: object) -> Restored:
        best: Restored = (value, Fit.NONE)
        for option in options:
            found = self.restore(option, value)
            if found[1] > best[1] or (best[0] is value and isinstance(found[0], Fault)):
                best = found
            if best[1] is Fit.SENT:
                break
        return best

    def _unwrap(self, inner: Shape, value: object) -> Restored:
        own = self.restore(inner, value)
        if isinstance(value, dict) and cast(Json, value).keys() == {WRAPPER}:
            wrapped: object = cast(Json, value)[WRAPPER]
            found = self.restore(inner, wrapped)
            if found[1] is Fit.SENT or own[1] is Fit.NONE or isinstance(wrapped, str):
                return found
        return own

    def _array(self, shape: Array, items: list[object]) -> Restored:
        found = [self.restore(shape.item, item) for item in items]
        fit = min((each for _, each in found), default=Fit.SENT)
        within = shape.least <= len(items) <= shape.most
        return [each for each, _ in found], fit if within else Fit.NONE

    def _entries(self, shape: Entries, items: list[object]) -> Restored:
        pairs: list[tuple[str, object]] = []
        for item in items:
            entry = cast(Json, item) if isinstance(item, dict) else {}
            if entry.keys() != {KEY, VALUE} or not isinstance(entry[KEY], str):
                return items, Fit.NONE
            pairs.append((entry[KEY], entry[VALUE]))
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            return self._fault(f"the key {show(twice[0])} is in {KEY} twice")
        return self._pairs(shape, pairs, Fit.SENT)

    def _pairs(self, shape: Entries, pairs: list[tuple[str, object]], fit: Fit) -> Restored:
        found: Json = {}
        for key, each in pairs:
            found[key], of_value = self.restore(shape.value, each)
            fit = min(fit, of_value, self.restore(shape.key, key)[1])
        return found, fit if shape.least <= len(pairs) <= shape.most else Fit.NONE

    def _object(self, shape: Object, given: Json) -> Restored:
        found: Json = {}
        fits = [self._completeness(shape, given)]
        for key, each in given.items():
            member = shape.members.get(key)
            if member is not None:
                if self._is_left_out(member, each):
                    continue
                found[key], fit = self.restore(member.shape, each)
            elif shape.others is None:
                found[key], fit = each, Fit.OWN if shape.is_open else Fit.NONE
            elif key == shape.others[0] and isinstance(each, list):
                entries, fit = self.restore(shape.others[1], cast(object, each))
                if isinstance(entries, dict):
                    rest = cast(Json, entries)
                    taken = [name for name in rest if name in shape.members or name in given]
                    if taken:
                        found[key], fit = self._fault(
                            f"the key {show(taken[0])} is also a property of the object"
                        )
                    else:
                        found |= rest
                else:
                    found[key] = entries
            else:
                found[key], fit = self.restore(shape.others[1].value, each)
                fit = min(fit, Fit.OWN)
            fits.append(fit)
        return found, min(fits)

    def _read_text(self, shape: Text, value: object) -> Restored:
        known = None if shape.texts is None else [orjson.loads(text) for text in shape.texts]
        own = Fit.OWN
        if known is not None or shape.only_objects:
            fits = isinstance(value, dict) if known is None else value in known
            own = Fit.OWN if fits else Fit.NONE
        if not isinstance(value, str):
            return value, own
        try:
            found: object = read_exactly(value)
        except NotExact as error:
            return self._fault(str(error))
        except ValueError:
            return value, own
        if (known is not None and found not in known) or (
            shape.only_objects and not value.lstrip().startswith("{")
        ):
            return value, Fit.NONE
        return found, Fit.SENT

    def _fault(self, problem: str) -> Restored:
        self.has_faults = True
        return Fault(problem), Fit.NONE

    def _completeness(self, shape: Object, given: Json) -> Fit:
        missing = [name for name in shape.members if name not in given]
        if any(shape.members[name].needed for name in missing):
            return Fit.NONE
        if missing or (shape.others is not None and shape.others[0] not in given):
            return Fit.OWN
        return Fit.SENT

    def _places(self, shape: Tuple, given: Json) -> Restored:
        known = {place(i) for i in range(len(shape.members))}
        if shape.further is not None:
            known.add(shape.further[0])
        if given.keys() != known:
            return given, Fit.NONE
        found: list[object] = []
        fits = [Fit.SENT]
        for i, member in enumerate(shape.members):
            if self._is_left_out(member, given[place(i)]):
                return found, min(fits)
            item, fit = self.restore(member.shape, given[place(i)])
            found.append(item)
            fits.append(fit)
        if shape.further is not None:
            rest, fit = self.restore(shape.further[1], given[shape.further[0]])
            if not isinstance(rest, list):
                return given, Fit.NONE
            found += cast(list[object], rest)
            fits.append(fit)
        return found, min(fits)

    def _list(self, shape: Tuple, items: list[object]) -> Restored:
        found: list[object] = []
        fits = [Fit.OWN]
        for i, item in enumerate(items):
            if i < len(shape.members):
                each, fit = self.restore(shape.members[i].shape, item)
            elif shape.further is not None:
                each, fit = self.restore(shape.further[1].item, item)
            else:
                each, fit = item, Fit.NONE
            found.append(each)
            fits.append(fit)
        if any(member.needed for member in shape.members[len(items) :]):
            fits.append(Fit.NONE)
        return found, min(fits)

    def _is_left_out(self, member: Member, value: object) -> bool:
        # Strict mode has no optional properties. So null means that one is left out,
        # unless the caller's schema takes null.
        return value is None and not member.needed and not self._takes_null(member.shape, set())

    def _takes_null(self, shape: Shape, asked: set[str]) -> bool:
        match shape:
            case Leaf(sent):
                return _is_scalar(sent, None)
            case Text(only_objects, texts):
                return not only_objects and texts is None
            case Union(options):
                return any(self._takes_null(option, asked) for option in options)
            case Ref(name) if name not in asked:
                return self._takes_null(self._named[name], asked | {name})
            case _:
                return False


_TYPES: dict[str, Any] = {
    "string": str,
    "number": int | float,
    "integer": int | float,
    "boolean": bool,
    "null": NoneType,
}
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
    "multipleOf": lambda value, step: Fraction(str(value)) % Fraction(str(step)) == 0,
}


def _is_scalar(sent: Json, value: object) -> bool:
    """Return True if *value* satisfies *sent*, a schema for scalars only.

    This does not use jsonschema, which needs more stack than a deeply nested answer
    leaves. It may then end in a Rust panic, which is not an `Exception`.
    """
    declared: str | list[str] = sent.get("type", [])
    kinds = [declared] if isinstance(declared, str) else declared
    values: list[object] = sent.get("enum", [sent["const"]] if "const" in sent else [value])
    if value not in values or not any(_is_of(kind, value) for kind in kinds):
        return False
    try:
        if isinstance(value, str):
            return "pattern" not in sent or pattern_validator(sent["pattern"]).is_valid(value)
        if isinstance(value, bool | NoneType):
            return True
        return all(holds(value, sent[key]) for key, holds in _BOUNDS.items() if key in sent)
    except ValueError:
        return False


def _is_of(kind: str, value: object) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, _TYPES[kind])
