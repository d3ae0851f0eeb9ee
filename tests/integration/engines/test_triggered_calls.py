"""Calls that a model makes of its own accord, where the marks around them are tokens of its own: on
a tiny random model, which writes whatever it may.
"""

import json
from importlib import import_module
from typing import Any

import pytest

from turnmill.schemas.content import ToolCall
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.formats.calls import find_call_fault
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.width import MOST_NEXT
from turnmill.schemas.turns import GenerationParams, Tool
from turnmill.workers.engines.base import Chunk
from turnmill.workers.engines.local.scheduling import Generation, Token
from turnmill.workers.engines.text.tools import HERMES, OfferedTools
from turnmill.workers.engines.vllm.formats import structured_fields

torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")
slots = import_module("turnmill.workers.engines.torch.slots")
grammars = import_module("turnmill.workers.engines.torch.grammars")
llguidance = import_module("llguidance.hf")

END = "</s>"
MARKS = ("<tool_call>", "</tool_call>", "<think>")
NOTE = Tool(
    name="note",
    parameters={
        "type": "object",
        "properties": {
            "topic": {"enum": ["delivery", "付款"]},
            "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["topic", "urgency"],
    },
)
TIME = Tool(name="time")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of bytes, with the marks as tokens that are no control tokens, as Qwen's are."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    read = Tokenizer(models.BPE({sign: id for id, sign in enumerate(alphabet)}, []))
    read.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    read.decoder = decoders.ByteLevel()
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=read, eos_token=END)
    found.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return found


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def reply(model: Any, tokenizer: Any, params: GenerationParams, limit: int = 120) -> Chunk:
    """What is left of a reply that begins with a call, whose mark is made likely."""
    offered = OfferedTools.of(HERMES, params)
    assert offered is not None and offered.held is not None
    end = tokenizer.eos_token_id
    compiled = grammars.Grammars(tokenizer, len(tokenizer), {end})
    batch = slots.SlotBatch(model, frozenset({end}), slots.Limits(4, 10_000), compiled)
    generation = Generation(tokenizer.encode("Hi"), limit, params, held_to=offered.held)
    batch.admit(generation)
    while batch.is_busy:
        batch.step()
    ids, reason = [], None
    while not generation.events.empty():
        event = generation.events.get()
        assert isinstance(event, Token), event
        reason = event.finish_reason
        ids += [event.id] if reason != "stop" else []
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return list(offered.read([Chunk(text, len(ids)), Chunk("", 0, reason)]))[-1]


def asked(tokenizer: Any, seed: int = 0, **more: Any) -> GenerationParams:
    likely = {tokenizer.convert_tokens_to_ids(MARKS[0]): 100.0}
    wanted = {"temperature": 1.0, "seed": seed, "logit_bias": likely, "tools": (NOTE, TIME)}
    return GenerationParams(**wanted | more)


@pytest.mark.parametrize("seed", range(4))
def test_one_call_is_whole_and_meets_its_schema_and_ends_the_reply(
    model: Any, tokenizer: Any, seed: int
) -> None:
    params = asked(tokenizer, seed, parallel_tool_calls=False)
    last = reply(model, tokenizer, params)
    assert last.finish_reason == "tool_calls"
    [call] = last.tool_calls
    written = ToolCall(id=call.id, name=call.name, arguments=call.arguments)
    strict = params.model_copy(update={"tool_choice": "required"})
    assert find_call_fault([written], strict) is None


def test_further_calls_follow_where_several_may_be_made(model: Any, tokenizer: Any) -> None:
    last = reply(model, tokenizer, asked(tokenizer), 300)
    assert last.finish_reason == "length"  # its mark stays the likeliest token
    assert len(last.tool_calls) > 2
    assert {call.name for call in last.tool_calls} == {"note", "time"}


@pytest.mark.parametrize("is_parallel", [True, False])
def test_text_may_be_anything_but_a_call_of_something_else(
    tokenizer: Any, is_parallel: bool
) -> None:
    params = GenerationParams(tools=(NOTE, TIME), parallel_tool_calls=is_parallel)
    offered = OfferedTools.of(HERMES, params)
    assert offered is not None and offered.held is not None
    read = grammars.Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})

    def refused(text: str) -> str | None:
        """The first token that may not stand in this reply."""
        matcher = read.compile(offered.held, "").result()
        for token in tokenizer.encode(text):
            if not matcher.allowed(len(tokenizer), "cpu")[token]:
                return str(tokenizer.decode(token))
            matcher.take(token)
        return None if matcher.allowed(len(tokenizer), "cpu")[tokenizer.eos_token_id] else "</s>"

    call = "<tool_call>\n" + json.dumps({"name": "time", "arguments": {}}) + "\n</tool_call>"
    assert refused("Grüße! 付款 <b>{}</tool_call>") is None
    assert refused(f"<think>Hm.{call}") is None
    assert refused("<tool_call>") == "</s>"
    assert refused('<tool_call>\n{"name": "nobody"') == "b"
    assert refused('<tool_call>\n{"name": "note", "arguments": {"urgency"') == "u"
    assert refused(f"{call}\nand {call}!") == (None if is_parallel else "\n")


def held_reply(model: Any, tokenizer: Any, compiled: Any, schema: dict[str, Any]) -> list[Any]:
    """The events of a reply that is held to a schema."""
    end = tokenizer.eos_token_id
    batch = slots.SlotBatch(model, frozenset({end}), slots.Limits(4, 10_000), compiled)
    wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
    generation = Generation(tokenizer.encode("Hi"), 20, GenerationParams(), held_to=wanted)
    batch.admit(generation)
    while batch.is_busy:
        batch.step()
    events = []
    while not generation.events.empty():
        events.append(generation.events.get())
    return events


def test_many_optional_properties_are_kept_to_and_a_limit_is_an_error(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {
        "type": "object",
        "properties": {f"p{number}": {"type": "integer"} for number in range(600)},
        "additionalProperties": False,
    }
    compiled = grammars.Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    events = held_reply(model, tokenizer, compiled, schema)
    assert all(isinstance(event, Token) for event in events), events
    assert tokenizer.decode([events[0].id]) == "{"
    monkeypatch.setattr(grammars, "LIMITS", None)  # llguidance's own
    *_, last = held_reply(model, tokenizer, compiled, schema)
    assert isinstance(last, EngineFailure) and "items" in str(last)


def _optional(count: int, kind: str = "integer") -> dict[str, Any]:
    properties = {f"p{number}": {"type": kind} for number in range(count)}
    return {"type": "object", "properties": properties}


def _options(count: int) -> dict[str, Any]:
    arrays = [{"type": "array", "items": {"enum": [f"v{each}"]}} for each in range(count)]
    return {"type": "object", "properties": {"a": {"anyOf": arrays}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "reply", "is_held"),
    [
        (_optional(MOST_NEXT), {"p0": 1, f"p{MOST_NEXT - 1}": 2}, True),
        (_optional(MOST_NEXT, "array"), {"p0": [], f"p{MOST_NEXT - 1}": []}, True),
        (_options(MOST_NEXT), {"a": [f"v{MOST_NEXT - 1}"]}, True),
        (
            {
                "type": "object",
                "properties": {"a": _optional(MOST_NEXT), "b": _optional(MOST_NEXT)},
                "required": ["a", "b"],
            },
            {"a": {"p0": 1}, "b": {f"p{MOST_NEXT - 1}": 1}},
            True,
        ),
        (_optional(520), {"p0": 1, "p519": 2}, False),
        (_options(340), {"a": ["v339"]}, False),
    ],
)
def test_the_limit_of_accept_is_within_that_of_vllms_llguidance(
    tokenizer: Any, schema: dict[str, Any], reply: dict[str, Any], is_held: bool
) -> None:
    """vLLM takes llguidance's limits as they come."""
    asked = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
    grammar = grammars.LLMatcher.grammar_from_json_schema(structured_fields(asked)["json"])
    matcher = grammars.LLMatcher(
        llguidance.from_tokenizer(tokenizer, n_vocab=len(tokenizer)), grammar, log_level=0
    )
    text = json.dumps(reply, separators=(",", ":"))
    for token in tokenizer.encode(text, add_special_tokens=False):
        matcher.compute_bitmask()
        matcher.consume_token(token)
    assert (matcher.is_accepting() and not matcher.is_error()) is is_held
