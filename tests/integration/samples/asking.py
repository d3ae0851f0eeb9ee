"""Ask a sample bot its questions, and read what became of them."""

from dataclasses import dataclass
from typing import Any

from turnmill.producer.accept import accept
from turnmill.producer.cli.samples.install import Question, Sample
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.turns import GenerationParams, Lane, Message, Role, TurnRequest

_READ = """
SELECT t.state, r.content AS reply, s.verdict, s.sources, s.shown, s.first_number
FROM turns t LEFT JOIN replies r ON r.turn_id = t.id LEFT JOIN turn_sources s ON s.turn_id = t.id
WHERE t.id = %s
"""


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    reply: str
    verdict: Verdict
    #: Documents of the passages that the model was shown.
    uris: tuple[str, ...]
    #: The numbers that the reply may cite.
    citable: range

    @property
    def is_declined(self) -> bool:
        """Whether the bot said by itself that it does not know."""
        return self.verdict.is_reply


def ask_all(running: Any, sample: Sample, max_tokens: int | None = None) -> list[Answer]:
    """Ask each question in a conversation of its own; a worker must run."""
    asked = [
        (each, accept(running.database, _request(running, sample, each, max_tokens)))
        for each in sample.questions()
    ]
    running.wait_until_settled(300)
    return [_read(running, question, turn.turn_id) for question, turn in asked]


def _request(
    running: Any, sample: Sample, question: Question, max_tokens: int | None
) -> TurnRequest:
    return TurnRequest(
        tenant_id=running.tenant_id,
        bot=sample.name,
        lane=Lane.INTERACTIVE,
        messages=(Message(role=Role.USER, content=question.text),),
        params=GenerationParams(max_tokens=max_tokens),
    )


def _read(running: Any, question: Question, turn_id: Any) -> Answer:
    (row,) = running.database.run(_READ, (turn_id,))
    assert row.state == "completed", (question.text, row.state)
    shown, first = row.shown or 0, row.first_number or 1
    return Answer(
        question=question,
        reply=row.reply,
        verdict=Verdict(row.verdict),
        uris=tuple(source["uri"] for source in row.sources[:shown]),
        citable=range(first, first + shown),
    )
