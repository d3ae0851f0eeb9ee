"""Scores of tokens: penalties, biases and log-probabilities, by engines that declare them."""

import math
import zlib
from typing import Any

import pytest

from turnmill.schemas.capabilities import ALL_PENALTIES
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.turn.abort import Abort

PROMPT = Prompt((Message(role=Role.USER, content="Write a story about the sea."),))


def ask(engine: Engine, **fields: Any) -> list[Chunk]:
    params = GenerationParams(**{"temperature": 0.0, "max_tokens": 40, **fields})
    return [*engine.generate(PROMPT, params.over(DEFAULT_PARAMS), Abort())]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def engines(*names: str) -> pytest.MarkDecorator:
    params = [pytest.param(name, marks=pytest.mark.needs(name)) for name in names]
    return pytest.mark.parametrize("make_engine", params, indirect=True, scope="session")


@engines("openvino", "transformers")
def test_penalties_make_a_reply_repeat_itself_less_or_more(engine: Engine) -> None:
    assert engine.capabilities.penalties == ALL_PENALTIES

    def size(**penalties: float) -> float:
        """Of the compressed reply, as a share of it: small where it repeats itself."""
        text = text_of(ask(engine, **penalties)).encode()
        return len(zlib.compress(text)) / len(text)

    free, fond = size(), size(frequency_penalty=-2.0)
    assert fond < free
    assert text_of(ask(engine, presence_penalty=2.0)) != text_of(ask(engine))
    # And no neighbour, nor the next reply, is penalized for it.
    assert size() == free


@engines("transformers")
def test_log_probabilities_are_told_for_the_text_that_is_said(engine: Engine) -> None:
    assert engine.capabilities.logprobs
    chunks = ask(engine, logprobs=2)
    told = [each for chunk in chunks for each in chunk.logprobs]
    assert "".join(each.text for each in told).strip() == text_of(chunks).strip()
    for each in told:
        assert len(each.top) == 2
        # The likeliest token was taken.
        assert each.top[0] == (each.text, each.logprob)
        assert 0 < math.exp(each.logprob) <= 1
    assert not any(chunk.logprobs for chunk in ask(engine))


@engines("transformers")
def test_a_token_may_be_banned(engine: Engine) -> None:
    assert engine.capabilities.logit_bias
    with pytest.raises(InvalidInput, match="logit_bias"):
        ask(engine, logit_bias={2**30: 1.0})
    # Every token that is said is lowered: others are.
    free = text_of(ask(engine, max_tokens=4))
    lowered = dict.fromkeys(range(1024), -100.0)
    assert text_of(ask(engine, max_tokens=4, logit_bias=lowered)) != free
