"""The doctor's findings on a terminal, and for programs."""

import json
from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.doctor import Finding, Level

_STYLES = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.BROKEN: "bold red",
}


def show_findings(findings: Sequence[Finding]) -> None:
    console = make_console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        level = Text(finding.level.value, style=_STYLES[finding.level])
        table.add_row(level, finding.what, plain(finding.detail))
        if finding.fix:
            table.add_row("", "", Text("→ ", style="bold").append_text(plain(finding.fix)))
    console.print(table)
    console.print()
    console.print(_summary(findings))


def to_json(findings: Sequence[Finding]) -> str:
    return json.dumps(
        [
            {"level": f.level.value, "what": f.what, "detail": f.detail, "fix": f.fix}
            for f in findings
        ],
        indent=2,
        ensure_ascii=False,
    )


def _summary(findings: Sequence[Finding]) -> Text:
    counts = Counter(finding.level for finding in findings)
    if counts[Level.BROKEN]:
        text = f"{counts[Level.BROKEN]} broken: repair them from the top down."
        return Text(text, _STYLES[Level.BROKEN])
    if counts[Level.WARNING]:
        count = counts[Level.WARNING]
        text = f"Works, with {count} {'warning' if count == 1 else 'warnings'}."
        return Text(text, _STYLES[Level.WARNING])
    return Text("All is well.", _STYLES[Level.OK])
