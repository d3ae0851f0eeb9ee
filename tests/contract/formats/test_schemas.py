"""Every engine that declares formats keeps to them: ten schemas, many replies, all valid."""

import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.formats import SCHEMAS, schemas_at_random
from tests.requirements import require_installed
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.checking import check_format, find_fault
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.values import shortest_reply
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.turn.abort import Abort

#: Of each schema; `make test-formats` asks for more.
REPLIES = int(os.environ.get("FORMAT_REPLIES", "1"))

TEXT = "Mein Paket ist seit drei Wochen nicht da, Bestellung ORD-1234. Answer in JSON."


def format_of(name: str) -> ResponseFormat:
    return ResponseFormat(type="json_schema", schema_text=json.dumps(SCHEMAS[name]))


def reply(
    engine: Engine, format: ResponseFormat, seed: int, prefix: str = "", max_tokens: int = 120
) -> list[Chunk]:
    prompt = Prompt((Message(role=Role.USER, content=TEXT),), prefix)
    params = GenerationParams(
        temperature=1.0, max_tokens=max_tokens, seed=seed, response_format=format
    ).over(DEFAULT_PARAMS)
    return list(engine.generate(prompt, params, Abort()))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def is_compact(text: str) -> bool:
    """Whether JSON, of which the end may be missing, has white space within strings only."""
    return re.search(r"\s", re.sub(r'"(?:[^"\\]|\\.)*("|$)', "", text)) is None


def engines(*names: str) -> pytest.MarkDecorator:
    """Run a test with these engines, as far as they are here."""
    params = [pytest.param(name, marks=pytest.mark.needs(name)) for name in names]
    return pytest.mark.parametrize("make_engine", params, indirect=True, scope="session")


#: Those that write nothing else, not even once, and among them those that resume such a reply.
HOLDING = ("echo", "openvino", "transformers", "vllm")
RESUMING = ("echo", "transformers")
#: Those that leave nothing to validation.
EXACT = ("transformers", "vllm")
#: Of a server's reply, what is wrong shows when it is judged.
DECLARING = (*HOLDING, "openai_http")


@engines(*DECLARING)
def test_formats_and_resuming_are_declared(engine: Engine, request: pytest.FixtureRequest) -> None:
    assert "json_schema" in engine.capabilities.formats
    assert engine.capabilities.continues_formats == (
        request.node.callspec.params["make_engine"] in RESUMING
    )


@engines(*HOLDING)
def test_every_whole_reply_meets_its_schema(engine: Engine) -> None:
    names = [name for name in SCHEMAS for _ in range(REPLIES)]
    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(lambda n, s: reply(engine, format_of(n), s), names, range(len(names)))]
    faults, ends = [], Counter[tuple[str, str | None]]()
    for name, chunks in zip(names, replies, strict=True):
        end = chunks[-1].finish_reason
        ends[name, end] += 1
        if end == "stop" and (fault := find_fault(format_of(name), text_of(chunks))):
            faults.append((name, fault, text_of(chunks)))
        assert is_compact(text_of(chunks)), text_of(chunks)
    assert faults == []
    # A model as small as this one may nest, and list, until its limit.
    whole = sum(count for (_, end), count in ends.items() if end == "stop")
    assert whole >= 0.7 * len(names), ends


@engines("openvino", "transformers")
def test_what_accept_takes_the_engine_compiles(engine: Engine) -> None:
    """Of schemas at random; a step's time is a compilation's, so replies are cut early."""
    require_installed("hypothesis", "dev")
    from hypothesis import HealthCheck, given, settings

    compiled = []

    @settings(
        deadline=None, max_examples=60, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    @given(schemas_at_random())
    def compiles(schema: object) -> None:
        wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
        try:
            check_format(wanted)
        except InvalidInput:
            return
        chunks = reply(engine, wanted, seed=1, max_tokens=3)
        assert chunks[-1].finish_reason in ("stop", "length"), schema
        assert is_compact(text_of(chunks)), schema
        compiled.append(schema)

    compiles()
    assert len(compiled) >= 15


@engines(*EXACT)
def test_nothing_of_a_schema_is_left_to_validation(engine: Engine) -> None:
    """What other compilers of schemas are known to ignore."""
    properties = {
        "fives": {"type": "integer", "minimum": 1, "maximum": 999, "multipleOf": 5},
        "code": {"type": "string", "pattern": "^[a-z]+$", "minLength": 7, "maxLength": 9},
        "found": {"type": "string", "pattern": "[A-C]{2}", "maxLength": 4},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(lambda seed: text_of(reply(engine, wanted, seed)), range(8))]
    assert [find_fault(wanted, each) for each in replies] == [None] * 8, replies


@engines(*HOLDING)
def test_lengths_are_kept_to(engine: Engine) -> None:
    """Of texts and lists, which models left to themselves exceed."""
    properties = {
        "line": {"type": "string", "minLength": 40, "maxLength": 80},
        "marks": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 34, "maxItems": 36},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
    with ThreadPoolExecutor(4) as pool:
        seeds = range(4)
        replies = [*pool.map(lambda s: text_of(reply(engine, wanted, s, max_tokens=240)), seeds)]
    assert [find_fault(wanted, each) for each in replies] == [None] * 4, replies


@engines(*HOLDING)
def test_a_choice_and_a_free_object_are_formats_too(engine: Engine) -> None:
    texts = ("yes", "no, never", "是的", 'a "b"\n\\')
    for seed in range(2):
        chosen = text_of(reply(engine, ResponseFormat(type="choice", choices=texts), seed))
        assert chosen in texts
    assert text_of(reply(engine, ResponseFormat(type="json_object"), 0, max_tokens=8)).startswith(
        "{"
    )


@engines(*RESUMING)
def test_a_reply_with_a_format_resumes_inside_a_value_where_that_is_declared(
    engine: Engine,
) -> None:
    wanted = format_of("triage")
    whole = shortest_reply(wanted)
    for length in (9, len(whole) - 2, len(whole)):
        prefix = whole[:length]
        end = text_of(reply(engine, wanted, 3, prefix))
        assert find_fault(wanted, prefix + end) is None, prefix + end


@engines(*DECLARING)
def test_neighbours_of_a_reply_with_a_format_are_not_held_to_it(engine: Engine) -> None:
    prompt = Prompt((Message(role=Role.USER, content="What is the capital of France?"),))
    greedy = GenerationParams(temperature=0, max_tokens=12).over(DEFAULT_PARAMS)

    def plain(_: int) -> str:
        return text_of([*engine.generate(prompt, greedy, Abort())])

    alone = plain(0)
    with ThreadPoolExecutor(6) as pool:
        formatted = [pool.submit(reply, engine, format_of("triage"), seed) for seed in range(3)]
        beside = [*pool.map(plain, range(3))]
        for each in formatted:
            each.result()
    assert beside == [alone] * 3


@engines(*RESUMING)
def test_what_begins_wrong_ends_at_once(engine: Engine) -> None:
    """The reply is then judged, and restarts."""
    chunks = reply(engine, format_of("triage"), 0, "Certainly")
    assert chunks[-1].finish_reason == "stop"


@engines(*DECLARING)
def test_the_lane_of_batches_may_have_formats_while_others_wait(engine: Engine) -> None:
    prompt = Prompt((Message(role=Role.USER, content=TEXT),), lane=Lane.BATCH)
    params = GenerationParams(
        temperature=0, max_tokens=80, response_format=format_of("chinese")
    ).over(DEFAULT_PARAMS)

    def batch(_: int) -> str:
        return text_of([*engine.generate(prompt, params, Abort())])

    with ThreadPoolExecutor(16) as pool:
        slow = [pool.submit(batch, number) for number in range(9)]
        quick = [pool.submit(reply, engine, format_of("optional"), seed) for seed in range(2)]
        for each in quick:
            assert find_fault(format_of("optional"), text_of(each.result())) is None
        for done in slow:
            assert find_fault(format_of("chinese"), done.result()) is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_plain_form_of_each_schema_is_its_own_plain_form(name: str) -> None:
    """What engines compile says nothing that accept would not take."""
    once = plain_schema(json.dumps(SCHEMAS[name]))
    assert plain_schema(json.dumps(once))["$defs"].keys() == once["$defs"].keys()
