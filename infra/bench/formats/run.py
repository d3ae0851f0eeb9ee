"""`turnmill bench formats`: an engine with formats and without, in pairs within one run."""

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from turnmill.infra.bench.measure import answer
from turnmill.infra.bench.workload import Chat, short_chats
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.process.isolated import isolated
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.engines.registry import create_engine

#: Tokens of a reply whose rate is measured; the schema has it write more.
TOKENS = 48
#: A reply that ends at its limit, as one without a format does: both write equally many tokens.
_LONG = {
    "type": "array",
    "items": {"type": "string", "minLength": 1},
    "minItems": 32,
}


@dataclass(slots=True)
class Costs:
    """One engine, by round: times in seconds."""

    #: Tokens per second without a format, and with one.
    free: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    #: Times to the first token: without a format, and at a schema's first and second use.
    none_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    second_s: list[float] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The rate with a format ÷ that without one: the median of the pairs."""
        return statistics.median(h / f for h, f in zip(self.held, self.free, strict=True))


def run_formats(settings: EngineSettings, chats: int, rounds: int, seed: int) -> Costs:
    """Measure one engine in a process of its own.

    In each round as many chats as `chats` are asked at once, without a format and with one, in
    turn first; and one after the other, for the times to their first tokens.
    """
    # The second of a pair would find the first one's prompts computed.
    settings = settings.model_copy(update={"prefix_cache": False})
    return isolated(_measure, settings, chats, rounds, seed)


def triage(number: int) -> ResponseFormat:
    """A schema of six properties that no engine has seen, for each number."""
    properties = {
        "language": {"enum": ["en", "de", "zh"]},
        f"topic_{number}": {"enum": ["delivery", "payment", "account", "other"]},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "order": {"type": "string", "pattern": "^(ORD|INV)-\\d{4}$"},
        "is_complaint": {"type": "boolean"},
        "summary": {"type": "string", "maxLength": 200},
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return ResponseFormat(type="json_schema", schema_text=json.dumps(schema))


def _measure(settings: EngineSettings, chats: int, rounds: int, seed: int) -> Costs:
    costs, long = Costs(), ResponseFormat(type="json_schema", schema_text=json.dumps(_LONG))
    engine = create_engine(settings)
    engine.start()
    with closing(engine):
        for warm_up in (None, long):
            _rate(engine, short_chats(seed, chats, TOKENS), warm_up)
        for number in range(rounds):
            pair = [(costs.free, None), (costs.held, long)]
            # A machine that grows slower all the while is then nobody's advantage.
            for rates, format in pair if number % 2 else reversed(pair):
                rates.append(_rate(engine, short_chats(seed + number, chats, TOKENS), format))
            asked = short_chats(seed + rounds + number, 3, 1)
            fresh = triage(seed * rounds + number)
            for times, chat, format in zip(
                (costs.none_s, costs.first_s, costs.second_s),
                asked,
                (None, fresh, fresh),
                strict=True,
            ):
                times.append(_ask(engine, chat, format)[1])
    return costs


def _rate(engine: Engine, chats: Sequence[Chat], format: ResponseFormat | None) -> float:
    """Tokens per second of chats that are asked all at once."""
    with ThreadPoolExecutor(len(chats)) as pool:
        started_at = time.perf_counter()
        tokens = sum(pool.map(lambda chat: _ask(engine, chat, format)[0], chats))
        return tokens / (time.perf_counter() - started_at)


def _ask(engine: Engine, chat: Chat, format: ResponseFormat | None) -> tuple[int, float]:
    """Tokens, and the time to the first of them."""
    held = _Held(chat.messages, chat.max_tokens, format)
    result = answer(engine, Prompt(chat.messages), held)
    return result.tokens, result.first_token_s


@dataclass(frozen=True, slots=True)
class _Held(Chat):
    """A chat whose reply is held to a format."""

    format: ResponseFormat | None = None

    @property
    def params(self) -> GenerationParams:
        params = GenerationParams(temperature=0, top_p=1, max_tokens=self.max_tokens)
        return params.model_copy(update={"response_format": self.format})
