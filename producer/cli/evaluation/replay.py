"""`turnmill evaluate replay`: may this bot take the place of that one?"""

import shlex
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.evaluation.replies import (
    EmbedderOption,
    OutOption,
    meanings_of,
    report_folder,
)
from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from turnmill.producer.evaluation.gate import Rule
    from turnmill.producer.evaluation.meaning import Meanings
    from turnmill.producer.evaluation.outcomes import Outcome, Pair
    from turnmill.producer.evaluation.replay import Asked
    from turnmill.producer.evaluation.replay_page import ReplayReport
    from turnmill.schemas.batches import Batch

console = make_console()

FAILED, UNDECIDED, INTERRUPTED = 1, 2, 130

#: Runs are named after their beginning, in UTC.
_RUN, _RUN_EXAMPLE = "%Y%m%d-%H%M%S.%f", "20261129-174500.000000"


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `turnmill evaluate`."""
    app.command("replay")(replay)


def replay(
    bot: Annotated[str, typer.Option(help="Whose stored turns are replayed: the baseline.")],
    against: Annotated[str, typer.Option(help="The bot that may take its place: the candidate.")],
    turns: Annotated[int, typer.Option(min=1, help="Stored turns to draw.")] = 300,
    days: Annotated[int, typer.Option(min=1, help="Of so many days until now.")] = 30,
    seed: Annotated[int, typer.Option(help="Draws the turns.")] = 0,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="GATE=VALUE (repeatable): so much worse may it be."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A bot that compares the replies. Default: none.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The name of an interrupted run, to resume it.")
    ] = None,
    embedder: EmbedderOption = None,
    out: OutOption = None,
    tenant: TenantOption = None,
) -> None:
    """Answer stored turns again by two bots, and decide whether the second is good enough.

    The turns go through the batch lane, are delivered to nobody and belong to no conversation of
    a user. Exit status 0: passed, 1: failed, 2: the turns are too few to tell.

    Example: turnmill evaluate replay --bot support --against support-next --turns 300
    """
    with needing("evaluation"):
        from turnmill.producer.evaluation.gate import Verdict, with_margins
        from turnmill.producer.evaluation.replay_page import gates_table, judge_lines, write_replay

        rules = with_margins(read_margins(margin or ()))
        meanings = meanings_of(embedder)
        with open_system(tenant=tenant) as system:
            replayed = _Replay(system, bot, against, judge, run or f"{datetime.now(UTC):{_RUN}}")
            report, pairs = replayed.report(turns, days, seed, rules, meanings)
        page = write_replay(report, pairs, report_folder(out))
    console.print(plain(gates_table(report.gates)), soft_wrap=True)
    if report.judge:
        console.print(plain(judge_lines(report.judge).partition("\n")[0]), soft_wrap=True)
    console.print(plain(f"Report: {page}"), soft_wrap=True)
    console.print(plain(f"{against} against {bot}: {report.verdict}"), soft_wrap=True)
    statuses = {Verdict.PASSED: 0, Verdict.FAILED: FAILED, Verdict.UNDECIDED: UNDECIDED}
    raise typer.Exit(statuses[report.verdict])


def read_margins(given: list[str] | tuple[str, ...]) -> dict[str, float]:
    """Read `GATE=VALUE` words. Raises `InvalidInput`."""
    margins = {}
    for word in given:
        name, _, value = word.partition("=")
        try:
            margins[name] = float(value)
        except ValueError:
            raise InvalidInput(
                f"'{word[:80]}' is no margin. Write a gate and a number: similarity=0.05."
            ) from None
    return margins


class _Replay:
    """One run: asks, waits, and reads what was answered."""

    def __init__(
        self, system: System, baseline: str, candidate: str, judge: str | None, run: str
    ) -> None:
        self._system = system
        self._baseline = baseline
        self._candidate = candidate
        self._judge = judge
        self._run = run

    def report(
        self,
        turns: int,
        days: int,
        seed: int,
        rules: "tuple[Rule, ...]",
        meanings: "Meanings | None" = None,
    ) -> "tuple[ReplayReport, list[Pair]]":
        """Raises `NotFound` and `InvalidInput`."""
        from turnmill.producer.evaluation import gate, judge, meaning, outcomes
        from turnmill.producer.evaluation.replay_page import ReplayReport

        versions = [self._version(name) for name in (self._baseline, self._candidate)]
        pairs = self._pairs(turns, days, seed)
        samples = outcomes.samples_of(pairs)
        if meanings is not None:
            samples["meaning"] = meaning.meaning_samples(pairs, meanings)
        judged = None
        if self._judge is not None:
            asked = judge.ask_judge(self._judge, self._run, pairs)
            said = self._wait(self._submit(asked)) if asked.total else {}
            samples["wins"] = judge.judge_samples(pairs, said)
            judged = judge.judged(self._judge, pairs, said)
        gates = gate.decide(samples, rules)
        conversations = len({pair.question.conversation for pair in pairs})
        report = ReplayReport(
            baseline=self._baseline, candidate=self._candidate, baseline_version=versions[0],
            candidate_version=versions[1], run=self._run, seed=seed, turns=len(pairs),
            conversations=conversations, gates=gates, judge=judged,
            verdict=gate.overall(gates, conversations, has_judge=self._judge is not None),
            embedder=meanings.signature if meanings and samples["meaning"] else None,
        )  # fmt: skip
        return report, pairs

    def _version(self, bot: str) -> int:
        from turnmill.producer.evaluation.replay import version_of

        return version_of(self._system.database, self._system.tenant_id, bot)

    def _pairs(self, turns: int, days: int, seed: int) -> "list[Pair]":
        from turnmill.producer.evaluation.outcomes import pair_up
        from turnmill.producer.evaluation.replay import ask, draw_questions

        until = _start_of(self._run)
        between = (until - timedelta(days=days), until)
        questions = draw_questions(
            self._system.database, self._system.tenant_id, self._baseline, turns, between, seed
        )
        if not questions:
            raise InvalidInput(
                f"'{self._baseline}' has no answered turn of the last {days} days to replay."
            )
        asked = [
            ask(label, name, self._run, questions)
            for label, name in (("a", self._baseline), ("b", self._candidate))
        ]
        batches = [self._submit(each) for each in asked]
        baseline, candidate = map(self._wait, batches)
        return pair_up(questions, baseline, candidate)

    def _submit(self, asked: "Asked") -> "Batch":
        from turnmill.producer.batches.submission import submit
        from turnmill.schemas.store.batches.purpose import MEASURING

        database, tenant_id = self._system.database, self._system.tenant_id
        batch = submit(database, tenant_id, asked.bot, asked, purpose=MEASURING)
        console.print(plain(f"{asked.total} turns: {asked.name} (run {self._run})"))
        return batch

    def _wait(self, batch: "Batch") -> "dict[str, Outcome]":
        """Wait until all turns of a batch have ended, and read what became of them."""
        from turnmill.producer.batches.progress import progress
        from turnmill.producer.cli.views.batch_view import watch
        from turnmill.producer.evaluation.replay import read_outcomes

        done = watch(
            lambda: progress(self._system.database, batch.tenant_id, batch.batch_id),
            console,
            resume_command=shlex.join(["turnmill", *sys.argv[1:], "--run", self._run]),
        )
        if done is None:
            raise typer.Exit(INTERRUPTED)
        return read_outcomes(self._system.database, batch)


def _start_of(run: str) -> datetime:
    """Return when a run began: turns of later are no part of it. Raises `InvalidInput`."""
    try:
        return datetime.strptime(run, _RUN).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(f"'{run[:80]}' is no run. A run is named like {_RUN_EXAMPLE}.") from None
