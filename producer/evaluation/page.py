"""A report on replies as a folder: report.json, report.md, and plots where matplotlib is there."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from turnmill.compression.evaluate.intervals import Figure
from turnmill.compression.evaluate.markdown import table
from turnmill.producer.evaluation.measure import Group, Report


def write_report(report: Report, folder: Path) -> Path:
    """Write the report into the folder, and return its page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report.model_dump_json(indent=2)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    plots = []
    if find_spec("matplotlib"):
        from turnmill.producer.evaluation.plots import draw_groups

        plots = [draw_groups(report.groups, folder / "replies.png")]
    page = folder / "report.md"
    page.write_text(markdown(report, plots), encoding="utf-8")
    return page


def markdown(report: Report, plots: Sequence[Path] = ()) -> str:
    """Render the report as a Markdown page."""
    parts = [
        f"# {report.title}",
        "In brackets: 95 % confidence intervals, by the bootstrap over whole conversations.\n"
        "Length is in words, and each Chinese character is one. *Repeats* is the share of a "
        "reply's sequences of four words that it has said before.",
        "## Replies\n\n" + traits_table(report),
    ]
    if any(group.scores for group in report.groups):
        parts.append("## Against references\n\n" + scores_table(report) + "\n\n" + _signed(report))
    else:
        parts.append(
            "Nothing was compared with references: a change of these figures says that replies "
            "have changed, not whether they are better."
        )
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def traits_table(report: Report) -> str:
    """Render what replies show by themselves."""
    head = ("group", "replies", "conversations", "length", "refusals", "repeats", "empty", "cut")
    return table(head, [_traits(group) for group in report.groups])


def scores_table(report: Report) -> str:
    """Render the scores against references."""
    head = (
        "group", "scored", "BLEU", "ROUGE-1", "ROUGE-L", "chrF", "tokenizer",
        "similarity", "by chance",
    )  # fmt: skip
    return table(
        head,
        [
            (
                group.name,
                str(scores.replies),
                points(scores.bleu),
                share(scores.rouge1),
                share(scores.rouge_l),
                points(scores.chrf) if scores.chrf else "",
                scores.tokenizer,
                *_meaning(group),
            )
            for group in report.groups
            if (scores := group.scores)
        ],
    )


def points(figure: Figure) -> str:
    """Render a figure with one decimal."""
    return f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"


def share(figure: Figure) -> str:
    """Render a share with three decimals."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _traits(group: Group) -> tuple[str, ...]:
    figures: list[tuple[Figure | None, Callable[[Figure], str]]] = [
        (group.length, points), (group.refusals, share), (group.repeats, share),
        (group.empty, share), (group.cut, share),
    ]  # fmt: skip
    cells = [show(figure) if figure else "" for figure, show in figures]
    return (group.name, str(group.replies), str(group.conversations), *cells)


def _meaning(group: Group) -> tuple[str, str]:
    found = group.meaning
    if found is None:
        return "", ""
    return share(found.similarity), "" if found.chance is None else f"{found.chance:.3f}"


def _signed(report: Report) -> str:
    """Return the signatures of sacrebleu's scores and of the embedder, each once."""
    scores = [group.scores for group in report.groups if group.scores]
    signatures = {line: None for each in scores for line in each.signatures.items()}
    for group in report.groups:
        if group.meaning:
            signatures["similarity", group.meaning.signature] = None
    return "\n".join(f"- {name}: `{signature}`" for name, signature in signatures)
