"""A report as a folder: report.json, a Markdown page, and plots where matplotlib is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from turnmill.compression.evaluate.intervals import Figure
from turnmill.compression.evaluate.markdown import table
from turnmill.compression.evaluate.report import Report, Row

_MEGA = 1e6


def write_report(report: Report, folder: Path, misses: Sequence[str] = ()) -> list[Path]:
    """Write the report into the folder, and return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "report.json", folder / "report.md"
    data.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    plots = []
    if find_spec("matplotlib"):
        from turnmill.compression.evaluate.plots import draw

        plots = draw(report, folder)
    page.write_text(markdown(report, misses, plots), encoding="utf-8")
    return [data, page, *plots]


def markdown(report: Report, misses: Sequence[str] = (), plots: Sequence[Path] = ()) -> str:
    """Render the report as a Markdown page."""
    parts = [
        f"# {', '.join(row.name for row in report.candidates)} beside the original",
        _preface(report),
        "## Quality and size\n\n" + quality_table(report.rows),
    ]
    if any(row.replies for row in report.rows):
        parts.append("## Greedy replies\n\n" + _replies_table(report.rows))
    if any(row.speed for row in report.rows):
        parts.append("## Speed\n\n" + speed_table(report.rows))
    remarks = [f"- **{row.name}**: {each}" for row in report.rows for each in row.remarks]
    if remarks:
        parts.append("## Remarks\n\n" + "\n".join(remarks))
    if misses:
        parts.append("## Missed limits\n\n" + "\n".join(f"- {each}" for each in misses))
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def quality_table(rows: Sequence[Row]) -> str:
    """Render perplexities, ratios, agreement and sizes; ratios are to the first row."""
    head = (
        "model",
        "MB",
        "size",
        "dialogue",
        "× original",
        "prose",
        "× original",
        "KL dialogue / prose",
        "top-1 dialogue / prose",
    )
    return table(
        head,
        [
            (
                row.name,
                f"{row.weight_bytes / _MEGA:.1f}",
                f"{row.size:.2f}×",
                f"{row.dialogue.perplexity.value:.2f}",
                _interval(row.dialogue.ratio),
                f"{row.prose.perplexity.value:.2f}",
                _interval(row.prose.ratio),
                f"{row.dialogue.divergence.value:.3f} / {row.prose.divergence.value:.3f}",
                f"{row.dialogue.top_1.value:.3f} / {row.prose.top_1.value:.3f}",
            )
            for row in rows
        ],
    )


def speed_table(rows: Sequence[Row]) -> str:
    """Render the speeds; ratios are to the first row and of the same run."""
    first = rows[0].speed
    lines = []
    for row in rows:
        if row.speed and first:
            lines.append(
                (
                    row.name,
                    f"{row.speed.batch_1:.1f} ({row.speed.batch_1 / first.batch_1:.2f}×)",
                    f"{row.speed.batch_8:.1f} ({row.speed.batch_8 / first.batch_8:.2f}×)",
                    f"{row.speed.load_s:.1f}",
                    f"{row.speed.peak_bytes / _MEGA:.0f}",
                    f"{row.speed.load_average:.1f}",
                )
            )
    head = ("model", "tokens/s, batch 1", "batch 8", "load s", "peak MB", "load average")
    return table(head, lines)


def _replies_table(rows: Sequence[Row]) -> str:
    head = (
        "model",
        "equal to the original's",
        "words before the first difference",
        "BLEU to the original",
        "ROUGE-L to the original",
        "BLEU to people",
        "ROUGE-L to people",
    )
    return table(
        head,
        [
            (
                row.name,
                f"{row.replies.equal:.2f}",
                _interval(row.replies.agreement),
                _interval(row.replies.to_original.bleu),
                _interval(row.replies.to_original.rouge_l),
                _interval(row.replies.to_people.bleu),
                _interval(row.replies.to_people.rouge_l),
            )
            for row in rows
            if row.replies
        ],
    )


def _preface(report: Report) -> str:
    machine = report.machine
    windows = ", ".join(
        f"{count} windows of {length} tokens of {name}"
        for name, (count, length) in report.windows.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    replies = next((row.replies for row in report.rows if row.replies), None)
    sentences = [
        f"Measured on {machine.cores} cores of {machine.processor} with "
        f"{machine.memory_bytes / 1e9:.0f} GB of memory, {versions}, in {report.dtype}.",
        f"Scored: every token of {windows}; the recipe saw none of them.",
        "In brackets: 95 % confidence intervals, by the bootstrap over windows or replies.",
    ]
    if replies:
        units = "words" if replies.to_people.tokenizer == "13a" else "characters"
        sentences.append(
            f"BLEU by sacrebleu, tokenizer {replies.to_people.tokenizer}; ROUGE over {units}."
        )
    return "\n".join(sentences)


def _interval(figure: Figure) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
