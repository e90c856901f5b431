"""Requests made from the OpenAPI document, right ones and wrong ones, as Hypothesis strategies."""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

METHODS = ("get", "head", "post", "put", "patch", "delete")
Json = dict[str, Any]
Values = st.SearchStrategy[Any]

NO_SURROGATES = st.characters(exclude_categories=["Cs"])
TEXT = st.text(NO_SURROGATES, max_size=12)
HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)
HEADERS = HEADER_TEXT | st.sampled_from(
    [
        "bytes=0-9",
        "bytes=-5",
        "bytes=3-",
        "bytes=9999999-",
        "bytes=5-2",
        "*",
        "0",
        "1",
        "3",
        "99",
        "respond-async",
        "key-1",
    ]
)
ODD_TEXTS = st.sampled_from(["", " ", "\0", "a\0b", "' OR 1=1 --", "../../etc/passwd", "%00", "ü" * 300, "x" * 5000])
ODD_NUMBERS = st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")])
JUNK: Values = st.recursive(
    st.none() | st.booleans() | st.integers() | ODD_NUMBERS | st.floats() | TEXT | ODD_TEXTS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    parameters: list[Json]
    body: Mapping[str, Json]  # schemas by content type
    statuses: frozenset[int]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"


@dataclass(frozen=True)
class Made:
    """A request, ready to be sent."""

    method: str
    url: str
    params: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    content: bytes | None = None


class Document:
    """An OpenAPI document, and what can be made from it. `ids` gives values for a path parameter of an operation."""

    def __init__(self, document: Json, ids: Callable[[Operation, str], list[str]]) -> None:
        self._schemas: Json = document["components"]["schemas"]
        self._ids = ids
        self.operations = [
            Operation(
                method,
                path,
                [parameter for parameter in found.get("parameters", []) if parameter["in"] != "cookie"],
                {name: content["schema"] for name, content in found.get("requestBody", {}).get("content", {}).items()},
                frozenset(int(status) for status in found["responses"]),
            )
            for path, item in document["paths"].items()
            for method, found in item.items()
            if method in METHODS
        ]

    def requests(self, operation: Operation) -> st.SearchStrategy[Made]:
        """Requests of this operation, about half of them right in every part."""
        return _made(self, operation)

    def _path_values(self, operation: Operation, parameter: Json, is_right: bool) -> st.SearchStrategy[str]:
        known = st.sampled_from(self._ids(operation, parameter["name"]))
        if is_right:
            return known
        fitting = self._values(parameter["schema"]).map(as_text)
        odd = st.one_of(st.uuids().map(str), TEXT, ODD_TEXTS, fitting, HEADER_TEXT)
        # These would be another path altogether.
        return known | odd.filter(lambda text: text not in ("", ".", "..") and "/" not in text and "\\" not in text)

    def _contents(self, content_type: str, schema: Json, is_right: bool) -> st.SearchStrategy[bytes]:
        if "json" not in content_type:
            return st.binary(max_size=200)
        right = self._values(schema)
        if is_right:
            return right.map(as_json)
        return st.one_of(self._bent(schema).map(as_json), JUNK.map(as_json), st.binary(max_size=40))

    def _bent(self, schema: Json) -> Values:
        """An object with one of its values replaced, one too many, or one too few."""

        def bend(value: Any) -> Values:
            if not isinstance(value, dict):
                return JUNK
            whole: Json = value
            names = st.sampled_from(sorted(self._resolved(schema).get("properties", whole) or ["x"]))
            replaced = st.tuples(names | TEXT, JUNK).map(lambda pair: whole | {pair[0]: pair[1]})
            return replaced | names.map(lambda name: {key: one for key, one in whole.items() if key != name})

        return self._values(schema).flatmap(bend)

    def _resolved(self, schema: Json) -> Json:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema

    def _values(self, schema: Json) -> Values:
        """What the schema allows; long things are left short."""
        schema = self._resolved(schema)
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return st.one_of([self._values(one) for one in schema[several]])
        if "allOf" in schema:
            return self._values(schema["allOf"][0])
        match schema.get("type"):
            case "null":
                return st.none()
            case "boolean":
                return st.booleans()
            case "integer":
                low, high = _bounds(schema)
                return st.integers(None if low is None else int(low), None if high is None else int(high))
            case "number":
                low, high = _bounds(schema)
                return st.floats(low, high, allow_nan=False, allow_infinity=False)
            case "string":
                return self._texts(schema)
            case "array":
                least = schema.get("minItems", 0)
                return st.lists(self._values(schema.get("items", {})), min_size=least, max_size=least + 2)
            case "object":
                return self._objects(schema)
            case _:
                return JUNK

    def _texts(self, schema: Json) -> Values:
        match schema.get("format"):
            case "uuid":
                return st.uuids().map(str)
            case "date-time":
                return st.integers(-3600, 86400).map(lambda n: (datetime.now(UTC) + timedelta(seconds=n)).isoformat())
            case _:
                if "pattern" in schema:
                    return st.from_regex(schema["pattern"], fullmatch=True)
                least = schema.get("minLength", 0)
                return st.text(
                    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
                    min_size=least,
                    max_size=min(schema.get("maxLength", 20), least + 20),
                )

    def _objects(self, schema: Json) -> Values:
        required = set(schema.get("required", ()))
        known = {name: self._values(one) for name, one in schema.get("properties", {}).items()}
        if not known:
            more = schema.get("additionalProperties", True)
            values = self._values(more) if isinstance(more, dict) else st.integers() | TEXT
            return st.dictionaries(TEXT, values, max_size=3)
        needed = {name: known[name] for name in sorted(required & known.keys())}
        others = sorted(known.keys() - required)
        if not others:
            return st.fixed_dictionaries(needed)
        few = st.lists(st.sampled_from(others), max_size=3, unique=True)  # the more, the rarer one that fits together
        return few.flatmap(lambda names: st.fixed_dictionaries(needed | {name: known[name] for name in names}))


@st.composite
def _made(draw: st.DrawFn, document: Document, operation: Operation) -> Made:
    is_right = draw(st.booleans())
    url, params, headers = operation.path, list[tuple[str, str]](), dict[str, str]()
    for parameter in operation.parameters:
        name, where = parameter["name"], parameter["in"]
        if where == "path":
            value = draw(document._path_values(operation, parameter, is_right))
            url = url.replace("{" + name + "}", quote(value, safe=""))
        elif parameter.get("required") or draw(st.booleans()):
            right = document._values(parameter["schema"])
            value = draw(right if is_right or draw(st.booleans()) else JUNK)
            if where == "query":
                params += [(name, as_text(one)) for one in (value if isinstance(value, list) else [value])]
            else:
                headers[name] = draw(HEADERS)
    if not is_right and draw(st.booleans()):
        params.append((draw(TEXT), draw(TEXT)))
    content: bytes | None = None
    if operation.body and (is_right or draw(st.booleans())):
        content_type = draw(st.sampled_from(sorted(operation.body)))
        content = draw(document._contents(content_type, operation.body[content_type], is_right))
        is_named = is_right or draw(st.integers(0, 4))
        headers["Content-Type"] = content_type if is_named else draw(HEADER_TEXT)
    return Made(operation.method, url, params, headers, content)


def _bounds(schema: Json) -> tuple[float | None, float | None]:
    low, high = schema.get("minimum"), schema.get("maximum")
    step = 1 if schema["type"] == "integer" else 1e-3
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    return low, high


def as_text(value: Any) -> str:
    """As it stands in a path, a query or a header."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return json.dumps(value).encode("utf-8", "replace").decode()


def as_json(value: Any) -> bytes:
    """With what JSON does not know (NaN) and what UTF-8 does not (lone surrogates), as other programs write them."""
    return json.dumps(value).encode()


def strangers() -> Iterable[str]:
    """Ids of nothing."""
    return (str(uuid.UUID(int=0)), str(uuid.UUID(int=7, version=4)))
