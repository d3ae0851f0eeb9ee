"""Schemas: what is accepted and what is refused, by its place; and the values they allow."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.formats import SCHEMAS
from tests.requirements import require_installed
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats import checking, reading
from turnmill.schemas.formats.checking import check_format, find_fault
from turnmill.schemas.formats.kinds import FORMATS
from turnmill.schemas.formats.plain import is_left_recursive, read_json
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.values import shortest_reply


def format_of(schema: Any, *, strict: bool = False) -> ResponseFormat:
    return ResponseFormat(type="json_schema", schema_text=json.dumps(schema), strict=strict)


def refusal(schema: Any, *, strict: bool = False) -> str:
    with pytest.raises(InvalidInput) as caught:
        check_format(format_of(schema, strict=strict))
    assert caught.value.param is not None
    assert caught.value.param.startswith("response_format.json_schema.schema")
    return caught.value.param.removeprefix("response_format.json_schema.schema")


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shortest_reply_of_a_schema_meets_it(name: str) -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of(SCHEMAS[name])
    check_format(wanted)
    reply = shortest_reply(wanted)
    assert find_fault(wanted, reply) is None
    assert reply == json.dumps(json.loads(reply), ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (an_object(a={"not": {}}), ".properties.a.not"),
        (an_object(a={"type": "array", "uniqueItems": True}), ".properties.a.uniqueItems"),
        (an_object(a={"type": "array", "items": [{}]}), ".properties.a.items"),
        (an_object(a={"type": "string", "pattern": "(?=x)"}), ".properties.a.pattern"),
        (an_object(a={"type": "string", "format": "iri"}), ".properties.a.format"),
        (an_object(a={"type": "string", "minLength": -1}), ".properties.a.minLength"),
        (an_object(a={"type": "text"}), ".properties.a.type"),
        (an_object(a={"type": "string", "minimum": 1}), ".properties.a.minimum"),
        (an_object(a={"type": "integer", "minimum": 2, "maximum": 1}), ".properties.a.minimum"),
        (an_object(a={"$ref": "https://x.example/s.json"}), ".properties.a.$ref"),
        (an_object(a={"$ref": "#/$defs/none"}), ".properties.a.$ref"),
        (an_object(a={"anyOf": [{}, {"not": {}}]}), ".properties.a.anyOf[1].not"),
        (an_object(a={"allOf": [{}, {}]}), ".properties.a.allOf"),
        (an_object(a={"anyOf": [{}], "type": "object"}), ".properties.a.type"),
        (an_object(a=False), ".properties.a"),
        ({"patternProperties": {}}, ".patternProperties"),
        ({"if": {}}, ".if"),
        ({"type": "object", "required": ["x"], "additionalProperties": False}, ".required"),
        (an_object(n={"$ref": "#"}) | {"required": ["n"]}, ""),
        ({"anyOf": [{"$ref": "#"}, {}]}, ""),
        ({"enum": []}, ".enum"),
        ({"description": "x" * 70_000}, ""),
        ({"title": "\0"}, ""),
    ],
)  # fmt: skip
def test_what_no_engine_enforces_is_refused_by_its_place(schema: Any, place: str) -> None:
    assert refusal(schema) == place


def test_a_schema_may_be_ten_levels_deep_and_recursive_without_end() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(9):
        schema = an_object(a=schema)
    check_format(format_of(schema))
    assert refusal(an_object(a=schema)).startswith(".properties.a.properties.a")
    check_format(format_of({"type": "array", "items": {"$ref": "#"}}))


def test_strict_wants_every_property_required_and_no_other_one() -> None:
    good = an_object(a={}) | {"required": ["a"], "additionalProperties": False}
    check_format(format_of(good, strict=True))
    assert refusal(an_object(a={}), strict=True) == ".additionalProperties"
    assert refusal(good | {"required": []}, strict=True) == ".required"
    check_format(format_of(good | {"required": []}))


def test_an_object_has_the_properties_that_are_named_and_no_others() -> None:
    plain = plain_schema(json.dumps(an_object(b={"type": "integer"}, a={}) | {"required": ["c"]}))
    assert [*plain["properties"]] == ["b", "a", "c"]
    assert plain["additionalProperties"] is False
    assert plain_schema('{"type": "object"}')["additionalProperties"] == {}


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ('{"kind":"bug","n":1}', None),
        ('{"kind":"bug"}', "at 'the root' it does not meet 'required'"),
        ('{"kind":"secret","n":1}', "at 'kind' it does not meet 'enum'"),
        ('{"kind":"bug","n":1', "it is not JSON"),
        ('{"kind":"bug","n":NaN}', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_reply_is_judged_without_being_repeated(reply: str, fault: str | None) -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of(
        an_object(kind={"enum": ["bug", "wish"]}, n={"type": "number"})
        | {"required": ["kind", "n"]}
    )
    assert find_fault(wanted, reply) == fault


def test_patterns_and_decimals_are_judged_as_they_are_written() -> None:
    require_installed("jsonschema", "dev")
    slow = format_of({"type": "string", "pattern": "^(a+)+$"})
    assert (
        find_fault(slow, json.dumps("a" * 300 + "b")) == "at 'the root' it does not meet 'pattern'"
    )
    tenths = format_of({"type": "number", "multipleOf": 0.1})
    assert find_fault(tenths, "0.3") is None
    assert find_fault(tenths, "0.35") is not None


#: Of each format, a text that is valid and one that is not.
TEXTS = [
    ("date", "2024-02-29", "2023-02-29"),
    ("time", "23:59:60.5+01:00", "25:00:00Z"),
    ("time", "08:00:00z", "08:00:00"),
    ("date-time", "2024-02-29T08:00:00Z", "2023-02-29T08:00:00Z"),
    ("date-time", "2024-02-29t08:00:00.123456789-03:30", "2024-02-29 08:00:00Z"),
    ("date-time", "1985-04-12T23:20:50Z", "not one"),
    ("duration", "P3Y6M4DT12H30M5S", "P3Y4D"),
    ("duration", "P2W", "P"),
    ("email", "a.b@example.com", "a.b"),
    ("hostname", "a.example-1.com", "-a.example.com"),
    ("hostname", "a" * 63, "a" * 64),
    # Letters that are "s" and "k" where only case is ignored.
    ("hostname", "S.COM", "\u017f.com"),
    ("hostname", "K.COM", "\u212a.com"),
    ("ipv4", "127.0.0.1", "127.0.0.256"),
    ("ipv6", "::1", "::g"),
    ("uri", "https://[::1]:80/a%20b?c=d#e", "https://example.com/a b"),
    ("uri", "urn:isbn:0451450523", "/relative"),
    ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
]


@pytest.mark.parametrize(("name", "valid", "wrong"), TEXTS)
def test_every_format_is_judged(name: str, valid: str, wrong: str) -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of({"type": "string", "format": name})
    assert find_fault(wanted, json.dumps(valid)) is None
    assert find_fault(wanted, json.dumps(wrong)) == "at 'the root' it does not meet 'format'"


def test_no_format_is_accepted_that_nobody_judges() -> None:
    assert {name for name, _, _ in TEXTS} == set(FORMATS)


def test_choices_and_objects_are_formats_too() -> None:
    choice = ResponseFormat(type="choice", choices=("yes", "no"))
    check_format(choice)
    assert (find_fault(choice, "no"), find_fault(choice, "No")) == (
        None,
        "it is none of the choices",
    )
    for wrong in ((), ("a", "a"), ("x" * 70_000,)):
        with pytest.raises(InvalidInput) as caught:
            check_format(ResponseFormat(type="choice", choices=wrong))
        assert caught.value.param == "response_format.choice"
    free = ResponseFormat(type="json_object")
    assert (find_fault(free, "{}"), find_fault(free, "[]")) == (None, "it is not a JSON object")


def test_json_is_what_its_standard_says() -> None:
    with pytest.raises(ValueError, match="Infinity"):
        read_json("[Infinity]")
    with pytest.raises(ValueError, match="too large"):
        read_json("[1e999]")


def definitions(count: int, each: Callable[[int], Any]) -> dict[str, Any]:
    """A schema of definitions that each may lead to the next one."""
    named = {f"a{number}": each(number + 1) for number in range(count)}
    return {"$defs": named | {f"a{count}": {"type": "integer", "multipleOf": 7}}} | {
        "$ref": "#/$defs/a0"
    }


def to(number: int) -> dict[str, str]:
    return {"$ref": f"#/$defs/a{number}"}


def test_options_that_share_a_reference_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of(definitions(40, lambda number: {"anyOf": [to(number), to(number)]}))
    check_format(wanted)
    monkeypatch.setattr(checking, "MAX_STEPS", 1000)
    assert find_fault(wanted, "14") is None
    assert find_fault(wanted, "5") == "at 'the root' it does not meet 'anyOf'"


def test_the_steps_of_a_validation_are_bounded_whatever_the_keyword() -> None:
    require_installed("jsonschema", "dev")
    many = {"type": "array", "items": {"enum": [*range(2000)]}}
    long = {"type": "string", "pattern": "^(a?){900}$"}
    reason = "it takes too many steps to compare with the schema"
    assert find_fault(format_of(many), json.dumps([1] * 100)) is None
    assert find_fault(format_of(many), json.dumps([1] * 1000)) == reason
    assert find_fault(format_of(long), json.dumps("b" * 10_000)) == reason


@pytest.mark.parametrize(
    ("step", "reply", "is_met"),
    [
        (0.01, "1e30", True),
        (0.01, "1" * 400, True),
        (3, "1" * 400, False),
        (3, "3" * 400, True),
        (1e-9, "1e300", True),
        (7, "1e400", False),
        (0.1, "0.30000000000000004", False),
    ],
)
def test_multiples_are_exact_whatever_a_model_writes(step: float, reply: str, is_met: bool) -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of({"type": "number", "multipleOf": step})
    assert (find_fault(wanted, reply) is None) is is_met


def test_the_place_of_a_fault_can_be_stored_whatever_the_reply_names() -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of({"type": "object", "additionalProperties": {"type": "integer"}})
    fault = find_fault(wanted, '{"\\ud800\\u0000": "x"}')
    assert fault is not None
    assert "\0" not in fault
    fault.encode()


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "integer", "minimum": 1' + "0" * 400 + "}",
        '{"type": "integer", "multipleOf": 1' + "0" * 400 + "}",
        '{"type": "integer", "maximum": 1e999}',
        json.dumps({"type": "string", "pattern": "(" * 400 + ")" * 400}),
        json.dumps({"type": "string", "pattern": "\\ud800"}),
        json.dumps({"anyOf": [{}], "$ref": "#"}),
        *(
            json.dumps({"type": "array", "items": {"$ref": f"#/$defs/anyOf/{index}"}})
            for index in ("0" * 5000, "1" * 5000, "00", "-0", "٠")
        ),
        json.dumps(definitions(600, to)),
        json.dumps(definitions(190, to)),
        '{"\\ud800": 1}',
        '{"\ud800": 1}',
        '{"title": "\ud800"}',
        '{"enum": ["\\udfff"]}',
        "[" * 5000,
        "1" * 5000,
    ],
)
def test_whatever_a_schema_says_it_is_refused_as_input(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_format(ResponseFormat(type="json_schema", schema_text=text))
    str(caught.value).encode()
    assert (caught.value.param or "").startswith("response_format.json_schema.schema")


@pytest.mark.parametrize("error", [RecursionError, ValueError, OverflowError])
def test_a_schema_that_cannot_be_read_is_the_caller_s_mistake(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(reading, "depths", fail)
    assert refusal({"title": error.__name__}) == ""


def test_references_lead_to_so_many_places_however_they_are_written() -> None:
    names = [f"a{number}" for number in range(150)]
    wide = {"$defs": {name: {} for name in names}}
    check_format(format_of(wide | an_object(**{n: {"$ref": f"#/$defs/{n}"} for n in names})))
    one = an_object(**{"~~": {"type": "string"}, "x": {}})
    for spelled in ("~~", "~0~", "~~0", "~0~0"):
        one["properties"][spelled + "x"] = {"$ref": f"#/properties/{spelled}"}
    assert len(plain_schema(json.dumps(one))["$defs"]) == 1
    more = {f"a{number}": {} for number in range(201)}
    many = {"$defs": more} | an_object(**{n: {"$ref": f"#/$defs/{n}"} for n in more})
    assert refusal(many) == ".properties.a200.$ref"


def test_whether_definitions_lead_to_themselves_takes_a_few_looks_at_each() -> None:
    class Name(str):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Name.looks += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    count = 60
    named = {Name(f"a{n}"): {"anyOf": [to(n + 1), to(n + 1)]} for n in range(count)}
    assert not is_left_recursive({"$defs": {**named, f"a{count}": {}}})
    assert is_left_recursive({"$defs": {**named, f"a{count}": to(0)}})
    assert is_left_recursive({"$defs": {"a0": to(0)}})
    assert 0 < Name.looks < 40 * count


def test_a_value_that_several_schemas_of_one_of_allow_is_valid() -> None:
    require_installed("jsonschema", "dev")
    wanted = format_of({"oneOf": [{"type": "number"}, {"type": "integer"}]})
    check_format(wanted)
    assert find_fault(wanted, "1") is None
    assert find_fault(wanted, '"x"') is not None
