"""Read a JSON Schema: check it, and bring it into the plain form that engines compile."""

import json
import math
import re
from collections import deque
from functools import lru_cache
from typing import NoReturn

from turnmill.schemas.content import storable
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.kinds import (
    ALONE,
    ANNOTATIONS,
    BY_TYPE,
    FORMATS,
    KNOWN,
    OF_THE_ROOT,
    VALUES,
)
from turnmill.schemas.formats.plain import (
    Schema,
    bounds,
    depth_of,
    depths,
    is_left_recursive,
    read_json,
)
from turnmill.schemas.formats.response import MAX_FORMAT_BYTES

#: Schemas within schemas; a reference begins anew.
MAX_DEPTH = 10

#: What references lead to, all together.
MAX_DEFINITIONS = 200

#: Levels of the shallowest value, references and options counted.
MAX_VALUE_DEPTH = 100

#: An index into a list (RFC 6901, section 4).
_INDEX = re.compile("0|[1-9][0-9]{0,5}")

#: Longer bounds are left to validation.
MOST_LENGTH = 2**31


@lru_cache(maxsize=256)
def plain_schema(text: str, place: str = "schema", *, is_strict: bool = False) -> Schema:
    """Read a schema's text. The result is shared: do not change it.

    Raises:
        InvalidInput: it is too large or too deep, has a keyword that is not accepted, or no value
            could meet it; `param` is the place.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_FORMAT_BYTES:
        raise InvalidInput(f"'{place}' is larger than {MAX_FORMAT_BYTES // 1024} KiB.", param=place)
    if "\\u0000" in text:
        raise InvalidInput(f"'{place}' contains a NUL character.", param=place)
    try:
        schema = read_json(text)
        again = json.dumps(schema, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"'{place}' is not JSON: {error}.", param=place) from None
    if storable(again) != again:
        raise InvalidInput(f"'{place}' contains half of a surrogate pair.", param=place)
    try:
        return _Reader(schema, place, is_strict).read()
    except (ValueError, OverflowError, RecursionError) as error:
        reason = f"it cannot be read ({type(error).__name__})"
        raise InvalidInput(f"'{place}' is not supported: {reason}.", param=place) from None


class _Reader:
    def __init__(self, root: object, place: str, is_strict: bool) -> None:
        self._root = root
        self._place = place
        self._is_strict = is_strict
        self._defs: dict[str, Schema] = {}
        #: The name in `_defs` of what a reference leads to, however the reference is written.
        self._names: dict[int, str] = {}
        #: Names, what they stand for and its place: read one after the other, so that no chain of
        #: references is too long.
        self._unread: deque[tuple[str, object, str]] = deque()

    def read(self) -> Schema:
        plain = self._read(self._root, self._place, 1)
        while self._unread:
            name, target, place = self._unread.popleft()
            self._defs[name] = self._read(target, place, 1)
        whole = plain | {"$defs": self._defs}
        depth = depth_of(plain, depths(whole))
        if math.isinf(depth):
            self._refuse(self._place, "", "no finite value meets it")
        if depth > MAX_VALUE_DEPTH:
            reason = f"every value is more than {MAX_VALUE_DEPTH} references and levels deep"
            self._refuse(self._place, "", reason)
        if is_left_recursive(whole):
            self._refuse(self._place, "", "a schema refers to itself for the same value")
        return whole

    def _read(self, schema: object, place: str, depth: int) -> Schema:
        if depth > MAX_DEPTH:
            self._refuse(place, "", f"it is more than {MAX_DEPTH} levels deep")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            self._refuse(place, "", "a schema is an object")
        self._check_keywords(schema, place, is_root=place == self._place)
        asked = {name: value for name, value in schema.items() if not _is_annotation(name)}
        asked = {name: value for name, value in asked.items() if name not in OF_THE_ROOT}
        alone = next((name for name in ALONE if name in asked), None)
        if alone is None:
            return self._by_type(asked, place, depth)
        allowed = {alone, "type"} if alone in ("enum", "const") else {alone}
        for name in asked:
            if name not in allowed:
                self._refuse(place, name, f"it cannot stand beside '{alone}'")
        return self._alone(alone, asked, place, depth)

    def _check_keywords(self, schema: Schema, place: str, *, is_root: bool) -> None:
        for name, value in schema.items():
            if name not in KNOWN and not _is_annotation(name):
                self._refuse(place, name, "no engine enforces this keyword")
            if name in OF_THE_ROOT and not is_root:
                self._refuse(place, name, "it may stand at the root only")
            if name in VALUES:
                check, wanted = VALUES[name]
                found = check(value)
                if found is not True:
                    self._refuse(place, name, found or wanted)

    def _alone(self, name: str, asked: Schema, place: str, depth: int) -> Schema:
        value = asked[name]
        match name:
            case "$ref":
                return self._reference(value, place)
            case "enum" | "const":
                return self._values(asked, place, name)
            case "allOf" if len(value) != 1:
                self._refuse(place, name, "several schemas cannot be intersected: give one")
        read = [
            self._read(each, f"{place}.{name}[{number}]", depth + 1)
            for number, each in enumerate(value)
        ]
        return read[0] if len(read) == 1 else {"anyOf": read}

    def _reference(self, pointer: str, place: str) -> Schema:
        target = self._target(pointer, place)
        name = self._names.setdefault(id(target), f"d{len(self._names)}")
        if name not in self._defs:
            if len(self._names) > MAX_DEFINITIONS:
                self._refuse(
                    place, "$ref", f"references lead to more than {MAX_DEFINITIONS} places"
                )
            self._defs[name] = {}
            shown = pointer[:300].removeprefix("#").replace("/", ".")
            # Read as what it is, wherever it stands.
            self._unread.append((name, target, f"{self._place}{shown}"))
        return {"$ref": f"#/$defs/{name}"}

    def _target(self, pointer: str, place: str) -> object:
        if pointer != "#" and not pointer.startswith("#/"):
            self._refuse(place, "$ref", "only references within the schema are followed: '#/…'")
        target = self._root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and _INDEX.fullmatch(name):
                target = dict(enumerate(target)).get(int(name))
            else:
                target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict | bool):
            self._refuse(place, "$ref", "it leads nowhere")
        return target

    def _values(self, asked: Schema, place: str, name: str) -> Schema:
        values = [asked["const"]] if name == "const" else asked["enum"]
        types = _types_of(asked)
        kept = [value for value in values if types is None or set(_json_types(value)) & {*types}]
        if not kept:
            self._refuse(place, name, "no value is of the type")
        return {"enum": kept}

    def _by_type(self, asked: Schema, place: str, depth: int) -> Schema:
        types = _types_of(asked) or [
            kind for kind, names in BY_TYPE.items() if kind != "integer" and names & asked.keys()
        ]
        if not types:
            return {}
        if "number" in types:
            types = [each for each in types if each != "integer"]
        for name in asked:
            if name != "type" and not any(name in BY_TYPE[each] for each in types):
                self._refuse(place, name, f"it says nothing about '{', '.join(types)}'")
        read = [self._typed(each, asked, place, depth) for each in dict.fromkeys(types)]
        return read[0] if len(read) == 1 else {"anyOf": read}

    def _typed(self, kind: str, asked: Schema, place: str, depth: int) -> Schema:
        match kind:
            case "object":
                return self._object(asked, place, depth)
            case "array":
                return self._array(asked, place, depth)
            case "string":
                return self._string(asked, place)
            case "number" | "integer":
                return self._number(kind, asked, place)
        return {"type": kind}

    def _object(self, asked: Schema, place: str, depth: int) -> Schema:
        others = asked.get("additionalProperties", True)
        named = asked.get("properties", {})
        required = list(dict.fromkeys(asked.get("required", ())))
        if self._is_strict:
            self._check_strict(others, named, required, place)
        properties = {
            name: self._read(each, f"{place}.properties.{name[:80]}", depth + 1)
            for name, each in named.items()
        }
        beyond: Schema | None = None
        if others is not False:
            beyond = self._read(others, f"{place}.additionalProperties", depth + 1)
        for name in required:
            if name not in properties and beyond is None:
                self._refuse(place, "required", f"'{name[:80]}' is no property, nor is any other")
            properties.setdefault(name, beyond or {})
        if not properties and beyond is not None:
            return {"type": "object", "additionalProperties": beyond}
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def _check_strict(self, others: object, named: Schema, required: list[str], place: str) -> None:
        if others is not False:
            self._refuse(
                place, "additionalProperties", "it must be given and false where 'strict' is true"
            )
        for name in named:
            if name not in required:
                self._refuse(
                    place, "required", f"'{name[:80]}' must be in it where 'strict' is true"
                )

    def _array(self, asked: Schema, place: str, depth: int) -> Schema:
        first = [
            self._read(each, f"{place}.prefixItems[{number}]", depth + 1)
            for number, each in enumerate(asked.get("prefixItems", ()))
        ]
        least, most = asked.get("minItems", 0), asked.get("maxItems")
        items = asked.get("items", True)
        if items is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and most < least:
            self._refuse(place, "minItems", f"no array has so many items: at most {most} may be")
        others = {} if items is False else self._read(items, f"{place}.items", depth + 1)
        plain: Schema = {"type": "array", "minItems": least, "items": others}
        if first:
            plain["prefixItems"] = first[:most]
        if most is not None:
            plain["maxItems"] = most
        return plain

    def _string(self, asked: Schema, place: str) -> Schema:
        plain = {"type": "string"} | {
            name: asked[name] for name in ("minLength", "maxLength", "pattern") if name in asked
        }
        if plain.get("maxLength", MOST_LENGTH) < plain.get("minLength", 0):
            self._refuse(place, "minLength", "it is above 'maxLength'")
        if "format" in asked:
            if "pattern" in asked:
                self._refuse(place, "format", "it cannot stand beside 'pattern'")
            plain["pattern"] = FORMATS[asked["format"]]
        return plain

    def _number(self, kind: str, asked: Schema, place: str) -> Schema:
        plain = {"type": kind} | {name: asked[name] for name in BY_TYPE["number"] if name in asked}
        low, high = bounds(plain)
        if low > high or (low == high and kind == "number" and _is_open(plain)):
            self._refuse(place, "minimum", "no number is within the bounds")
        return plain

    def _refuse(self, place: str, name: str, reason: str) -> NoReturn:
        where = f"{place}.{name[:80]}" if name else place
        raise InvalidInput(f"'{where}' is not supported: {reason}.", param=where)


def _is_open(plain: Schema) -> bool:
    return "exclusiveMinimum" in plain or "exclusiveMaximum" in plain


def _is_annotation(name: str) -> bool:
    return name in ANNOTATIONS or name.startswith("x-")


def _types_of(asked: Schema) -> list[str] | None:
    types = asked.get("type")
    return [types] if isinstance(types, str) else types


def _json_types(value: object) -> tuple[str, ...]:
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("integer", "number") if value.is_integer() else ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
    return ("object",)
