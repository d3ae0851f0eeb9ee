"""Two synthetic bots of known quality, and what the gate makes of them."""

import math
import random
from collections.abc import Callable

from turnmill.producer.evaluation.gate import Gate, Verdict, decide, overall
from turnmill.producer.evaluation.outcomes import Outcome, Pair, Question, samples_of
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import GenerationParams

VOCABULARY = [f"{a}{b}{c}" for a in "bdgklm" for b in "aeiou" for c in "nrst"]

Bot = Callable[[random.Random, list[str]], str | None]


def speaks(*, errs: float = 0.0, noise: float = 0.25, refuses: float = 0.05) -> Bot:
    """A bot that replaces words of the ideal reply at random, as sampling does, and its length."""

    def reply(draw: random.Random, ideal: list[str]) -> str | None:
        if draw.random() < errs:
            return None
        if draw.random() < refuses:
            return "I'm sorry, but I can't help with that."
        length = max(1, round(len(ideal) * math.exp(draw.gauss(0, 0.25))))
        words = (ideal * 3)[:length]
        return " ".join(draw.choice(VOCABULARY) if draw.random() < noise else w for w in words)

    return reply


def replayed(seed: int, baseline: Bot, candidate: Bot, turns: int = 300) -> list[Pair]:
    """Two turns a conversation, both about the same things."""
    draw = random.Random(seed)
    pairs = []
    for number in range(turns):
        ideal = random.Random(seed * 1000 + number // 2).choices(VOCABULARY, k=20)
        stored = baseline(draw, ideal) or ""
        question = Question(new_id(), str(number // 2), (), stored, GenerationParams())
        said = [Outcome(bot(draw, ideal), None) for bot in (baseline, candidate)]
        pairs.append(Pair(question, *said))
    return pairs


def judged(pairs: list[Pair]) -> tuple[Verdict, dict[str, Gate]]:
    gates = decide(samples_of(pairs))
    conversations = len({pair.question.conversation for pair in pairs})
    return overall(gates, conversations), {gate.name: gate for gate in gates}
