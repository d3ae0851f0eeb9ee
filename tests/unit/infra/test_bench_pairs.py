"""`turnmill bench system --against`: two versions in turn, read by the tables that they print."""

import io
import json
import stat
from pathlib import Path

import pytest
from rich.console import Console

from turnmill.infra.bench.pairs import CPU, Version, figures, run_pairs, version_at
from turnmill.infra.bench.system import Load
from turnmill.schemas.errors import InvalidInput, PermanentError

LOAD = Load(turns=10, singles=20, rounds=3, concurrency=2, saturated_s=5)
ROW = "│ valkey │ {} │ {} │ {} │ {} │"


def stand_in(folder: Path, body: str, runs: Path | None = None) -> Version:
    """A checkout whose Python notes its arguments and does what `body` says."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    note = f'echo "{folder.name} $*" >> {runs}' if runs else ""
    python.write_text(f'#!/bin/sh\ncase "$*" in *--help*) ;; *) {note or ":"};; esac\n{body}\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return version_at(folder)


def printing(rate: float, *, helps: str = "--turns") -> str:
    """A benchmark's body: its help names `helps`, its table says `rate`."""
    rows = [
        ROW.format("end to end", f"{rate:,.0f} turns/s", "2,000 bare no-op tasks/s", rate / 2000),
        ROW.format("latency p50", "8.1 ms", "0.03 ms engine alone", "+8.0 ms"),
    ]
    table = "\n".join(rows)
    return f"case \"$*\" in *--help*) echo '{helps}';; *) echo '{table}';; esac"


def in_pairs(ours: Version, theirs: Version, path: Path) -> str:
    text = io.StringIO()
    run_pairs(ours, theirs, ["valkey"], LOAD, path, Console(file=text, width=120))
    return text.getvalue()


def test_both_versions_run_in_turn_and_the_order_changes(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    old = stand_in(tmp_path / "old", printing(1000), runs)
    new = stand_in(tmp_path / "new", printing(1500), runs)
    in_pairs(new, old, tmp_path / "figures.jsonl")
    order = [line.split()[0] for line in runs.read_text().splitlines()]
    assert order == ["old", "new", "new", "old", "old", "new"]


def test_every_figure_has_its_medians_and_the_ratio_of_the_pairs(tmp_path: Path) -> None:
    old, new = (
        stand_in(tmp_path / "old", printing(1000)),
        stand_in(tmp_path / "new", printing(1500)),
    )
    rows = in_pairs(new, old, tmp_path / "figures.jsonl").splitlines()
    [rate] = [row for row in rows if "end to end, turns/s" in row]
    assert "1,000 (1,000 to 1,000)" in rate
    assert "1,500 (1,500 to 1,500)" in rate
    assert "1.50 (1.50 to 1.50)" in rate
    [added] = [row for row in rows if "latency p50, added ms" in row]
    assert "1.00 (1.00 to 1.00)" in added


def test_each_run_is_kept(tmp_path: Path) -> None:
    old, new = (
        stand_in(tmp_path / "old", printing(1000)),
        stand_in(tmp_path / "new", printing(1500)),
    )
    path = tmp_path / "figures.jsonl"
    in_pairs(new, old, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert lines[0]["version"] == "old"
    assert lines[0]["figures"]["end to end, turns/s"] == 1000
    assert lines[0]["figures"][CPU] > 0


@pytest.mark.parametrize(
    ("helps", "options"),
    [("--turns", ["", "--saturated-s=0"]), ("--saturated-s", ["--saturated-s=5"] * 2)],
)
def test_a_lane_is_saturated_only_where_both_versions_can(
    tmp_path: Path, helps: str, options: list[str]
) -> None:
    runs = tmp_path / "runs"
    old = stand_in(tmp_path / "old", printing(1000, helps=helps), runs)
    new = stand_in(tmp_path / "new", printing(1500, helps="--saturated-s"), runs)
    in_pairs(new, old, tmp_path / "figures.jsonl")
    asked = runs.read_text().splitlines()[:2]
    for line, option in zip(asked, options, strict=True):
        assert line.partition("--concurrency=2")[2].strip() == option


def test_a_real_table_is_read_whatever_its_borders() -> None:
    printed = (
        "┃ broker ┃ figure ┃ turnmill ┃ compared with ┃ ratio or difference ┃\n"
        "│ valkey │ saturated for 5 s │ 1,050 turns/s │ 64 turns/s its slots allow │ 0.98 │\n"
        "│ valkey │ hints in its queue, at most │ 513 │ 544, window and prefetched │ 0.94 │\n"
    )
    assert figures(printed) == {
        "saturated for 5 s, turns/s": 1050,
        "saturated for 5 s, ratio": 0.98,
        "hints in its queue, at most": 513,
        "hints in its queue, at most, ratio": 0.94,
    }


def test_a_folder_without_an_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="make -C"):
        version_at(tmp_path)


def test_a_version_that_fails_says_so_with_its_last_lines(tmp_path: Path) -> None:
    broken = stand_in(tmp_path / "old", "echo 'No broker here' >&2; exit 1")
    with pytest.raises(PermanentError, match=r"old failed[^\n]*\n.*No broker here"):
        broken.bench()
