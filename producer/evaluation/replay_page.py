"""The report of a replay as a folder: report.json, report.md, plots, and the pairs as JSONL."""

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.markdown import table
from turnmill.producer.evaluation.gate import Gate, Verdict
from turnmill.producer.evaluation.judge import Judged
from turnmill.producer.evaluation.outcomes import Pair
from turnmill.schemas.json_lines import one_line

_TOO_FEW = (
    "The verdicts are too few to tell (fewer than half of the pairs, or than 20 conversations), so "
    "no bot can pass: take a judge that answers with one word, replay more turns, or leave "
    "--judge out."
)


class ReplayReport(BaseModel):
    """One bot beside another, on the same stored turns."""

    model_config = ConfigDict(frozen=True)

    baseline: str
    candidate: str
    #: The bots' versions when the turns were asked.
    baseline_version: int
    candidate_version: int
    run: str
    seed: int
    turns: int
    conversations: int
    verdict: Verdict
    gates: tuple[Gate, ...]
    #: The signature of the embedder that compared meanings.
    embedder: str | None = None
    judge: Judged | None = None


def write_replay(report: ReplayReport, pairs: Sequence[Pair], folder: Path) -> Path:
    """Write the report into the folder, and return its page.

    `pairs.jsonl` is what `turnmill studies create --kind pairwise --from` reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = report.model_dump_json(indent=2)
    (folder / "report.json").write_text(data + "\n", encoding="utf-8")
    rows = "".join(one_line(json.dumps(_pair(report, each), ensure_ascii=False)) + "\n"
                   for each in pairs if each.baseline.text and each.candidate.text)  # fmt: skip
    (folder / "pairs.jsonl").write_text(rows, encoding="utf-8")
    plots = []
    if report.gates and find_spec("matplotlib"):
        from turnmill.producer.evaluation.plots import draw_gates

        plots = [draw_gates(report.gates, folder / "gates.png")]
    page = folder / "report.md"
    page.write_text(markdown(report, plots), encoding="utf-8")
    return page


def markdown(report: ReplayReport, plots: Sequence[Path] = ()) -> str:
    """Render the report as a Markdown page."""
    parts = [
        f"# {report.candidate} against {report.baseline}: {report.verdict}",
        f"{report.turns} stored turns of {report.conversations} conversations of "
        f"`{report.baseline}`, answered again by `{report.baseline}` (version "
        f"{report.baseline_version}) and `{report.candidate}` (version "
        f"{report.candidate_version}). Seed {report.seed}, run {report.run}.",
        gates_table(report.gates),
        "A *hard* gate passes where the candidate's figure is worse by no more than the margin. "
        "Beyond the margin it fails if the 95 % interval of the difference (bootstrap over "
        "conversations) excludes 0, and is undecided otherwise. A *soft* one passes where the "
        "whole interval is better than the margin, fails where all of it is worse, and is "
        "undecided otherwise. More turns settle what is undecided.",
    ]
    if report.embedder:
        parts.append(f"*Meaning* is by `{report.embedder}`: 0 is chance, 1 the stored reply.")
    if report.judge:
        parts.append("## The judge\n\n" + judge_lines(report.judge))
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def gates_table(gates: Sequence[Gate]) -> str:
    """Render what each gate found."""
    head = ("gate", "kind", "baseline", "candidate", "difference", "margin", "turns", "verdict")
    return table(head, [_line(gate) for gate in gates])


def judge_lines(judge: Judged) -> str:
    """Render what the judge said, with what tells how far to believe it."""
    left_out = f"{judge.unreadable:.0%} had no verdict in one order at least, and are left out"
    longer = "" if judge.longer_won is None else f"; the longer reply won {judge.longer_won:.0%}"
    said = (
        f"Of the others the candidate won {judge.wins:.0%} and lost {judge.losses:.0%}, and "
        f"{judge.flipped:.0%} changed with the order and count as ties{longer}."
        if judge.compared
        else "None is left."
    )
    few = "" if judge.is_enough else f" {_TOO_FEW}"
    return (
        f"`{judge.bot}` was asked about {judge.pairs} pairs in both orders: {left_out}. {said}{few}"
        f"\n\nPrompt:\n\n```text\n{judge.prompt}\n```"
    )


def _line(gate: Gate) -> tuple[str, ...]:
    show = _SHOWN.get(gate.name, "{:.3f}".format)
    change = _CHANGES.get(gate.name, "{:+.3f}".format)
    found = gate.difference
    return (
        gate.name,
        "hard" if gate.is_hard else "soft",
        show(gate.baseline),
        show(gate.candidate),
        f"{change(found.value)} [{change(found.low)}, {change(found.high)}]",
        change(gate.margin).lstrip("+"),
        str(gate.turns),
        gate.verdict,
    )


#: Lengths are logarithms: shown as words, and their differences as percentages.
_SHOWN: dict[str, Callable[[float], str]] = {"length": lambda value: f"{math.expm1(value):.1f}"}
_CHANGES: dict[str, Callable[[float], str]] = {"length": lambda value: f"{math.expm1(value):+.0%}"}


def _pair(report: ReplayReport, pair: Pair) -> dict[str, object]:
    prompt = [message.model_dump(mode="json") for message in pair.question.messages]
    return {
        "prompt": prompt,
        "a": pair.baseline.text,
        "b": pair.candidate.text,
        "bot": report.baseline,
        "bot_b": report.candidate,
        "turn_id": f"turn_{pair.question.turn_id.hex}",
        "stored": pair.question.reply,
    }
