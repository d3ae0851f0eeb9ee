"""A format as the EBNF that OpenVINO GenAI (XGrammar inside) holds a reply to.

Its own `json_schema` allows any white space, with which small models fill a reply. This grammar
is compact, and simpler than a schema where that compiles slowly, for a grammar is compiled within
a step of the batch: `multipleOf` and lengths beside a pattern are left to validation.
https://github.com/mlc-ai/xgrammar/blob/main/docs/tutorials/ebnf_guided_generation.md
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from turnmill.schemas.formats.patterns import (
    Chars,
    Node,
    Options,
    Repeat,
    Sequence_,
    all_but,
    chars,
    parse_pattern,
)
from turnmill.schemas.formats.plain import Schema, bounds
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.openvino.numbers import DIGITS, decimals, integers
from turnmill.workers.engines.text.call_form import MOST_CALLS, CallForm

#: Larger bounds of repetitions are left to validation.
MOST_REPEATED = 4_096
#: Each place in a repetition is compiled by itself, which takes milliseconds: long ones repeat
#: blocks, which all of them share.
_BLOCK = 16
#: Places in all repetitions of a grammar: a second. Longer ones than fit are left to validation.
_MOST_PLACES = 250

#: What a JSON text has no escape for.
_PLAIN = all_but(chars((0, 31), (34, 34), (92, 92), (127, 159)))
#: The other characters that are written as themselves with a backslash.
_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}

_ANY = r"""
any ::= object | array | text | float | "true" | "false" | "null"
object ::= "{" (text ":" any ("," text ":" any)*)? "}"
array ::= "[" (any ("," any)*)? "]"
""".strip()

#: As models write JSON that nobody holds them to.
_LOOSE = r"""
space ::= [ \n\t]*
loose ::= looseobject | loosearray | text | float | "true" | "false" | "null"
pair ::= space text space ":" space loose space
looseobject ::= "{" (pair ("," pair)* | space) "}"
loosearray ::= "[" space (loose space ("," space loose space)*)? "]"
""".strip()


@lru_cache(maxsize=256)
def grammar_of(held_to: ResponseFormat | CallForm) -> str:
    """The grammar of a checked format, or of calls."""
    writer = _Writer()
    if isinstance(held_to, CallForm):
        return writer.write(writer.calls(held_to))
    if held_to.type == "choice":
        return f"root ::= {_either(map(_literal, held_to.choices))}"
    return writer.write(writer.schema(_plain(held_to)))


def _plain(format: ResponseFormat) -> Schema:
    """The schema of a checked format that is not a choice."""
    if format.type == "json_object":
        return {"type": "object", "additionalProperties": {}, "$defs": {}}
    return plain_schema(format.schema_text or "{}")


class _Writer:
    def __init__(self) -> None:
        self._rules: list[str] = []
        self._named: dict[str, str] = {}
        self._uses_any = self._uses_loose = False
        #: The rules of repetitions, each compiled once however often it is used.
        self._repeated: dict[tuple[str, int, int | None], str] = {}
        #: Of the definitions of the schema that is written.
        self._prefix = ""

    def calls(self, form: CallForm) -> str:
        """The expression of a reply with calls, whose schemas share no definitions."""
        arguments = []
        for number, (_, format) in enumerate(form.calls):
            self._prefix = f"tool{number}"
            arguments.append(self.schema(_plain(format)) if format else self._loose())
        first, following = (
            self._rule(
                _either(
                    f"{_literal(before)} {value} {_literal(form.end)}"
                    for (before, _), value in zip(calls, arguments, strict=True)
                )
            )
            for calls in (form.first, form.calls)
        )
        parts = [first]
        if form.between is not None:
            parts.append(f"({_literal(form.between)} {following}){{0,{MOST_CALLS - 1}}}")
        if form.after:
            parts.append(_literal(form.after))
        if form.trigger is None:
            return " ".join(parts)
        # Any text, in which the trigger begins what follows it in the rule.
        tag = f"({_literal(form.trigger)}, {self._rule(' '.join(parts))})"
        repeats = str(form.repeats).lower()
        return f"TagDispatch({tag}, stop_eos=true, stop_str=(), loop_after_dispatch={repeats})"

    def schema(self, whole: Schema) -> str:
        """The expression of a value of a whole schema."""
        root = self._value(whole)
        for name, plain in whole["$defs"].items():
            self._rules.append(f"{self._prefix}{name} ::= {self._value(plain)}")
        return root

    def write(self, root: str) -> str:
        """The grammar with this expression as its root."""
        self._write_repeated()
        lines = [f"root ::= {root}", *self._rules]
        if self._uses_any:
            lines.append(_ANY)
        if self._uses_loose:
            lines.append(_LOOSE)
        lines += [
            f"text ::= {_quoted('char*')}",
            f"char ::= {_class(_PLAIN)} | {_either(map(_literal, _ESCAPES.values()))}",
            f'float ::= "-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}}) ("." [0-9]{{1,{DIGITS}}})?',
            f'whole ::= "0" | "-"? [1-9] [0-9]{{0,{DIGITS - 1}}}',
        ]
        return "\n".join(lines) + "\n"

    def _loose(self) -> str:
        """Any object, with spaces as models write them."""
        self._uses_loose = True
        return "looseobject"

    def _rule(self, body: str) -> str:
        """The name of the rule with this body; engines read long ones in parentheses slowly."""
        if body not in self._named:
            self._named[body] = f"r{len(self._named)}"
            self._rules.append(f"{self._named[body]} ::= {body}")
        return self._named[body]

    def _value(self, plain: Schema) -> str:
        match plain:
            case {"$ref": pointer}:
                return self._prefix + str(pointer).rpartition("/")[2]
            case {"anyOf": options}:
                return self._rule(_either([self._value(each) for each in options]))
            case {"enum": values}:
                return self._rule(_either(_literal(_compact(value)) for value in values))
            case {"type": "object", "properties": properties}:
                return self._object(properties, plain["required"])
            case {"type": "object"}:
                return self._map(plain["additionalProperties"])
            case {"type": "array"}:
                return self._array(plain)
            case {"type": "string"}:
                return self._string(plain)
            case {"type": "number" | "integer"}:
                return self._number(plain)
            case {"type": "boolean"}:
                return '("true" | "false")'
            case {"type": "null"}:
                return '"null"'
        self._uses_any = True
        return "any"

    def _object(self, properties: Schema, required: Sequence[str]) -> str:
        """In their order. After the rules `later`, a comma stands before the next property."""
        later, first = '"}"', '"}"'
        for name in reversed(properties):
            pair = f"{_literal(_compact(name) + ':')} {self._value(properties[name])}"
            if name in required:
                later, first = self._rule(f'"," {pair} {later}'), self._rule(f"{pair} {later}")
            else:
                later, first = (
                    self._rule(f'"," {pair} {later} | {later}'),
                    self._rule(f"{pair} {later} | {first}"),
                )
        return self._rule(f'"{{" {first}')

    def _map(self, value: Schema) -> str:
        pair = self._rule(f'text ":" {self._value(value)}')
        return self._rule(f'"{{" ({pair} ("," {pair})*)? "}}"')

    def _array(self, plain: Schema) -> str:
        first = [self._value(each) for each in plain.get("prefixItems", ())]
        least, most = plain["minItems"], plain.get("maxItems")
        after = ""
        if most is None or most > len(first):
            item = self._value(plain["items"])
            after = self._items(
                item, least - len(first), None if most is None else most - len(first), bool(first)
            )
        for number, item in reversed([*enumerate(first)]):
            comma = '"," ' if number else ""
            after = f"{comma}{item} {after}"
            if number >= least:
                after = f"({after})?"
        return self._rule(f'"[" {after} "]"')

    def _items(self, item: str, least: int, most: int | None, follows: bool) -> str:
        """Items behind others, or the first ones."""
        name = self._rule(item)
        if follows:
            return self._repeat(f'("," {name})', least, most)
        if most == 0:
            return ""
        more = self._repeat(f'("," {name})', least - 1, None if most is None else most - 1)
        rest = f"{name} {more}"
        return rest if least > 0 else f"({rest})?"

    def _string(self, plain: Schema) -> str:
        if "pattern" in plain:
            return self._rule(_quoted(self._pattern(parse_pattern(plain["pattern"]))))
        least, most = plain.get("minLength", 0), plain.get("maxLength")
        if not least and (most is None or most > MOST_REPEATED):
            return "text"
        return self._rule(_quoted(self._repeat("char", least, most)))

    def _pattern(self, node: Node) -> str:
        match node:
            case Chars():
                return _escaped_class(node)
            case Sequence_(parts):
                return " ".join(map(self._pattern, parts)) or '""'
            case Options(options):
                return self._rule(_either(map(self._pattern, options)))
            case Repeat(part, least, most):
                body = self._pattern(part)
                return body if most == least == 1 else self._repeat(f"({body})", least, most)

    def _repeat(self, part: str, least: int, most: int | None) -> str:
        """Repeat an expression; bounds that are too large are dropped."""
        least = min(max(0, least), MOST_REPEATED)
        if most is not None and most > MOST_REPEATED:
            most = None
        if _places(least, most) <= 1:
            return self._bounded(part, least, most)
        key = part, least, most
        if key not in self._repeated:
            self._repeated[key] = self._named[f"{key}"] = f"r{len(self._named)}"
        return self._repeated[key]

    def _write_repeated(self) -> None:
        """Write the rules of repetitions, short ones first, as far as the budget goes."""
        places = 0
        for key, name in sorted(self._repeated.items(), key=lambda each: _places(*each[0][1:])):
            part, least, most = key
            written = f"{part}+" if least else f"{part}*"
            if (needed := _places(least, most)) <= _MOST_PLACES - places:
                known = len(self._named)
                written = self._bounded(part, least, most)
                places += needed + _BLOCK * (len(self._named) - known)
            self._rules.append(f"{name} ::= {written}")

    def _bounded(self, part: str, least: int, most: int | None) -> str:
        rest = f"{part}*" if most is None else self._at_most(part, most - least)
        return f"{self._exactly(part, least)} {rest}".strip() or '""'

    def _exactly(self, part: str, count: int) -> str:
        if count <= _BLOCK:
            return f"{part}{{{count}}}" if count else ""
        blocks, rest = divmod(count, _BLOCK)
        return f"{self._exactly(self._block(part), blocks)} {self._exactly(part, rest)}".rstrip()

    def _at_most(self, part: str, count: int) -> str:
        if count < 2 * _BLOCK:
            return f"{part}{{0,{count}}}" if count else ""
        blocks, rest = divmod(count, _BLOCK)
        # The last block, too, may be broken off anywhere.
        return f"{self._at_most(self._block(part), blocks - 1)} {part}{{0,{_BLOCK + rest}}}"

    def _block(self, part: str) -> str:
        return self._rule(f"{part}{{{_BLOCK}}}")

    def _number(self, plain: Schema) -> str:
        low, high = bounds(plain)
        if math.isinf(low) and math.isinf(high):
            return "whole" if plain["type"] == "integer" else "float"
        if plain["type"] == "integer":
            return self._rule(_either(integers(low, high)))
        return self._rule(_either(decimals(plain, low, high)))


def _places(least: int, most: int | None) -> int:
    """How many places a repetition has of its own, besides those of its blocks."""
    return _places_of(least) + (0 if most is None else _places_of(most - least))


def _places_of(count: int) -> int:
    blocks, rest = divmod(count, _BLOCK)
    return count if count < 2 * _BLOCK else _places_of(blocks) + _BLOCK + rest


def _quoted(body: str) -> str:
    return f'"\\"" {body} "\\""'


def _either(options: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(options))


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> str:
    return '"' + "".join(_in_literal(each) for each in text) + '"'


def _in_literal(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else _code(ord(character))


def _code(point: int) -> str:
    return f"\\U{point:08x}" if point > 0xFFFF else f"\\u{point:04x}"


def _class(node: Chars) -> str:
    return "[" + "".join(_range(low, high) for low, high in node.ranges) + "]"


def _range(low: int, high: int) -> str:
    return _in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}"


def _in_class(point: int) -> str:
    return chr(point) if chr(point).isascii() and chr(point).isalnum() else _code(point)


def _escaped_class(node: Chars) -> str:
    """Characters as JSON writes them in a text."""
    plain = _intersect(node, _PLAIN)
    written = [_class(plain)] if plain.ranges else []
    written += [
        _literal(escape)
        for character, escape in _ESCAPES.items()
        if any(low <= ord(character) <= high for low, high in node.ranges)
    ]
    if not written:
        # Control characters, which no pattern wants alone.
        low = node.ranges[0][0]
        written = [_literal(f"\\u{low:04x}")]
    return written[0] if len(written) == 1 else f"({' | '.join(written)})"


def _intersect(one: Chars, other: Chars) -> Chars:
    return all_but(chars(*all_but(one).ranges, *all_but(other).ranges))
