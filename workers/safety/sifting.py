"""Checks of what a turn brings, before its prompt is made."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from uuid import UUID

from turnmill.schemas.citations.sources import Source
from turnmill.schemas.safety.invisible import plainly_written
from turnmill.schemas.safety.names import Names
from turnmill.schemas.safety.personal import find_personal
from turnmill.schemas.safety.policy import Action, Safety, Stage
from turnmill.schemas.turns import Role
from turnmill.workers.safety.examiner import Blocked, Examiner
from turnmill.workers.safety.links import LinkFilter
from turnmill.workers.safety.targets import Targets
from turnmill.workers.turn.claim import Claim

#: Stands where a passage is blocked: the others keep their numbers.
WITHHELD = "(withheld)"

STAGES = {Role.USER: Stage.INPUT, Role.TOOL: Stage.PASSAGE}


def refuse_blocked(claim: Claim) -> None:
    """
    Raises:
        Blocked: the policy blocks what the turn's user or tool said.
    """
    examiner = Examiner(claim.safety, claim.turn_id)
    for message in claim.messages:
        if (stage := STAGES.get(message.role)) and claim.safety.actions(stage):
            verdict = examiner.examine(message.text, stage)
            if verdict.action is Action.BLOCK:
                raise Blocked(f"The message holds: {', '.join(verdict.categories)}.")


def sift(claim: Claim, examiner: Examiner) -> Claim:
    """Return the claim with its passages as the model may read them. What a user or a tool said is
    masked in each prompt that repeats it (`GuardedEngine`).
    """

    def passage(text: str) -> str:
        verdict = examiner.examine(text, Stage.PASSAGE)
        return WITHHELD if verdict.action is Action.BLOCK else verdict.text

    documents = (
        each.model_copy(update={"title": passage(each.title), "text": passage(each.text)})
        for each in claim.documents
    )
    sources = (
        each.model_copy(update={"title": passage(each.title), "content": passage(each.content)})
        for each in claim.sources
    )
    return replace(claim, documents=tuple(documents), sources=tuple(sources))


def sift_pages(claim: Claim, pages: Iterable[Source]) -> tuple[Source, ...]:
    """Return pages of strangers as they may be kept and shown below a reply: masked, none that the
    policy blocks, and without addresses where replies may link nowhere.
    """
    examiner = Examiner(claim.safety, claim.turn_id)
    hosts = Targets.of(claim.safety.hosts)
    links = LinkFilter(hosts, claim.safety.removed)
    kept = []
    for page in pages:
        title, content = (
            examiner.examine(text, Stage.PASSAGE) for text in (page.title, page.content)
        )
        if Action.BLOCK in (title.action, content.action):
            continue
        page = page.model_copy(update={"title": title.text, "content": content.text})
        if claim.safety.links == "none" and not hosts.allow(page.uri):
            # A page without a title has its address for one.
            name = links.rewrite(page.title)
            page = page.model_copy(update={"uri": name, "title": name, "url": None})
        kept.append(page)
    return tuple(kept)


def for_server(safety: Safety, turn_id: UUID, question: str) -> str:
    """Return a question as a server may read it, which makes a vector of it: without what the
    policy keeps from models, in whatever form of its characters (`plainly_written`).

    Raises:
        SettingsError: the extra `personal` is not installed.
    """
    if safety.actions(Stage.INPUT):
        examiner = Examiner(safety, turn_id)
        for form in (str, plainly_written):
            question = examiner.examine(form(question), Stage.INPUT, is_counted=False).text
    if safety.remote == "pseudonyms":
        question = plainly_written(question)
        question = Names(partial(find_personal, regions=safety.regions)).hide(question)
    return question
