"""The README's picture: a real run of the sample tickets, drawn by `make picture`."""

import contextlib
import html
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from turnmill.producer.cli import batch
from turnmill.producer.cli.backlogs import answering
from turnmill.producer.cli.stack import running_stack, sample_backlog

BACKLOG, RESULTS = Path("tickets.jsonl"), Path("answers.csv")
COMMAND = f"turnmill batch run {BACKLOG} -o {RESULTS}"

#: Cells. Wider than this, GitHub scales the text too small to read.
WIDTH = 100

#: The width of a cell in Rich's pictures.
CELL = 12.2

#: A text: what stands before its width and after it, and the text itself.
_TEXT = re.compile(r'(<text [^>]*textLength=)"[^"]*"([^>]*>)([^<]*)')

#: Rich's own format fetches its font from a CDN, which pages that show pictures do not allow.
_FORMAT = """\
<svg class="turnmill" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans \
Mono CJK SC", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def draw(target: Path) -> None:
    """Answer the sample with a fresh embedded stack, and write what `COMMAND` prints as an SVG."""
    target = target.absolute()
    with _fresh_folder() as folder, running_stack(folder / "data"), contextlib.chdir(folder):
        shutil.copy(sample_backlog(), BACKLOG)
        console = Console(
            record=True, width=WIDTH, file=io.StringIO(), force_terminal=False, highlight=False
        )
        console.print(Text.assemble(("$ ", "dim"), (COMMAND, "bold")))
        batch.console = answering.console = console
        with contextlib.suppress(typer.Exit):
            batch.run(BACKLOG, RESULTS)
    drawn = console.export_svg(title="", code_format=_FORMAT, unique_id="turnmill")
    target.write_text(_TEXT.sub(_fit, drawn))


def _fit(text: re.Match[str]) -> str:
    """Give a text the width of its cells: Rich counts a Chinese character, which has two, once."""
    head, tail, content = text.groups()
    return f'{head}"{cell_len(html.unescape(content)) * CELL:g}"{tail}{content}'


@contextlib.contextmanager
def _fresh_folder() -> Iterator[Path]:
    """An empty folder that everybody may enter: as root, the servers run as another account."""
    with tempfile.TemporaryDirectory(prefix="turnmill-picture-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TURNMILL_DATA"] = str(folder / "data")
        yield folder


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
