"""An engine as one turn may use it: what its bot's policy forbids neither reaches nor leaves it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from turnmill.schemas.safety.messages import with_text
from turnmill.schemas.safety.policy import Safety, Stage
from turnmill.schemas.turns import GenerationParams, Message
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.safety.examiner import Examiner
from turnmill.workers.safety.formatted import guard_json
from turnmill.workers.safety.guard import Filter, Guard
from turnmill.workers.safety.links import LinkFilter
from turnmill.workers.safety.output import CheckFilter
from turnmill.workers.safety.pseudonyms import PseudonymousEngine
from turnmill.workers.safety.sifting import STAGES, sift
from turnmill.workers.safety.targets import Targets
from turnmill.workers.safety.wrapped import REMEMBERED_TEXTS, WrappedEngine
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.claim import Claim


def made_safe(engine: Engine, claim: Claim) -> tuple[Engine, Claim]:
    """Wrap the engine as the claim's bot wants it, and sift what the turn brings; its sources are
    found already.

    Raises:
        Blocked: the bot's policy blocks what the turn says.
    """
    examiner = Examiner(claim.safety, claim.turn_id)
    filters = _filters(claim, claim.safety, examiner)
    reads = {stage for stage in (Stage.INPUT, Stage.PASSAGE) if claim.safety.actions(stage)}
    if reads:
        claim = sift(claim, examiner)
    if claim.safety.remote == "pseudonyms" and engine.capabilities.remote:
        engine = PseudonymousEngine(engine, claim.safety.regions)
    if not (filters or reads):
        return engine, claim
    return GuardedEngine(engine, filters, examiner if reads else None), claim


def _filters(claim: Claim, safety: Safety, examiner: Examiner) -> list[Filter]:
    filters: list[Filter] = []
    if safety.actions(Stage.OUTPUT):
        filters.append(CheckFilter(examiner))
    links = safety.links or ("any" if claim.knowledge is None else "sources")
    if links != "any":
        pinned = _pinned(claim) if links == "sources" else ()
        filters.append(LinkFilter(Targets.of(safety.hosts, pinned), safety.removed))
    return filters


def _pinned(claim: Claim) -> list[str]:
    return [place for each in claim.sources for place in (each.uri, each.url) if place]


class GuardedEngine(WrappedEngine):
    """Shows replies through filters, and prompts without what the policy masks in them."""

    def __init__(
        self, engine: Engine, filters: Sequence[Filter], examiner: Examiner | None = None
    ) -> None:
        """`examiner`: of what prompts repeat."""
        super().__init__(engine)
        self._filters = filters
        self._examiner = examiner
        #: Each prompt of a turn, counted ones too, repeats the conversation's past.
        self._examined = lru_cache(REMEMBERED_TEXTS)(self._examine)

    def changed(self, prompt: Prompt) -> Prompt:
        """Mask the messages: each turn repeats those of earlier ones."""
        if self._examiner is None:
            return prompt
        return replace(prompt, messages=tuple(map(self._masked, prompt.messages)))

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        chunks = super().generate(prompt, params, abort)
        if not self._filters:
            return chunks
        if params.response_format is not None:
            return guard_json(chunks, self._filters)
        return Guard(self._filters, prompt.prefix).read(chunks)

    def _masked(self, message: Message) -> Message:
        stage = STAGES.get(message.role)
        if stage is None:
            return message
        return with_text(message, lambda text: self._examined(text, stage))

    def _examine(self, text: str, stage: Stage) -> str:
        assert self._examiner is not None
        return self._examiner.examine(text, stage, is_counted=False).text
