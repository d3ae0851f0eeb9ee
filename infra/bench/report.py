"""What `turnmill bench engine` prints, draws and writes."""

import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from turnmill.infra.bench.aborts import AbortTime
from turnmill.infra.bench.engines import EngineResult, Results
from turnmill.infra.bench.measure import Run, merged, percentile

#: What a terminal, a log and a page of documentation can show without folding.
WIDTH = 100


#: Without line breaks: rich folds it to the width of the table.
ABORT_CAPTION = (
    "Abort: until the engine says that it no longer holds the turn. A step is the mean time "
    "between two tokens of the turns beside it meanwhile."
)


class Journal:
    """Shows and keeps each figure as soon as it is there: a run that is cut loses none."""

    def __init__(self, console: Console, path: Path) -> None:
        """`path` gets a JSON object a line."""
        self._console = console
        self._path = path

    def note(self, name: str, figures: Run | EngineResult) -> None:
        with self._path.open("a") as lines:
            lines.write(json.dumps({"name": name, **asdict(figures)}) + "\n")
        if isinstance(figures, Run):
            rate = f"{figures.tokens_per_s:,.1f} tokens/s, {figures.chats} chats"
            self._console.print(f"{name}: {rate}", highlight=False)
        else:
            self._console.print(_ratios(name, figures))


def show(results: Results, console: Console) -> None:
    """The machine, and the table of all rates."""
    console.print(
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.machine()}, Python {platform.python_version()}, seed {results.seed}",
        highlight=False,
    )
    rates = _table("", "tokens/s", "÷ naive", "chats", "first token\np50 / p99 ms",
                   "next token\np50 / p99", "cached", "MiB")  # fmt: skip
    for name, dtype, run in _runs(results):
        base = merged(results.naive[dtype])
        cached = run.cached_tokens / run.prompt_tokens if run.prompt_tokens else 0
        rates.add_row(
            name, f"{run.tokens_per_s:,.1f}", f"{run.tokens_per_s / base.tokens_per_s:.1f}",
            str(run.chats), _pair(run.first_token_s), _pair(run.between_tokens_s),
            f"{cached:.0%}", f"{run.peak_mib:,.0f}" if run.peak_mib else "",
        )  # fmt: skip
    console.print(rates)
    if results.ceiling and results.engines:
        ceiling, result = results.ceiling, next(iter(results.engines.values()))
        most = ceiling.tokens_per_s(merged(result.forgetful))
        naive = merged(results.naive[results.base_dtype])
        console.print(
            f"Products of matrices: {ceiling.flops / 1e9:,.0f} GFLOP/s ({ceiling.dtype}). "
            f"The linear layers alone allow {most:,.1f} tokens/s, "
            f"{most / naive.tokens_per_s:.1f} ÷ naive, to engines that compute in such numbers."
        )


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first)
    for each in others:
        table.add_column(each, justify="right")
    return table


def _runs(results: Results) -> Iterator[tuple[str, str, Run]]:
    """Name, the dtype of the naive run that it is compared with, run."""
    for dtype, naive in results.naive.items():
        yield f"naive generate, {dtype}", dtype, merged(naive)
    for name, run in results.peers.items():
        yield name, results.base_dtype, run
    for name, result in results.engines.items():
        yield f"{name}, cache off", result.naive_dtype, merged(result.forgetful)
        yield f"{name}, cache on", result.naive_dtype, merged(result.alone)
        if result.in_system:
            yield f"{name}, in the system", result.naive_dtype, merged(result.in_system)


def _ratios(name: str, result: EngineResult) -> Table:
    table = _table(name, "engine alone", "in the system")
    table.add_row("tokens/s, cache off ÷ naive generate", _by_round(result.gained), "")
    table.add_row("tokens/s ÷ engine alone", "1", _by_round(result.kept))
    table.add_row(
        f"first token of turn {len(result.conversation)} ÷ turn 1",
        _growth(result.conversation),
        _growth(result.conversation_in_system),
    )
    table.add_row(
        "interactive p95 first token, batch lane full ÷ idle",
        _spread(result.busy, result.idle),
        _spread(result.busy_in_system, result.idle_in_system),
    )
    if result.cached:
        table.add_row("cached tokens of the last turn", str(result.cached[-1]), "")
    if result.aborts:
        table.add_row("abort until the turn is no longer held, p50", _abort(result.aborts, 0.5), "")
        table.add_row(f"…, worst of {len(result.aborts)}", _abort(result.aborts, 1), "")
        table.caption = ABORT_CAPTION
        table.caption_justify = "left"
    return table


def _by_round(ratios: list[float]) -> str:
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _growth(times: list[float]) -> str:
    if not times:
        return ""
    return f"{times[-1] / times[0]:.2f} ({times[-1] * 1e3:.0f} ÷ {times[0] * 1e3:.0f} ms)"


def _abort(aborts: list[AbortTime], share: float) -> str:
    steps = percentile([each.steps for each in aborts], share)
    return f"{steps:.1f} steps ({percentile([each.took_s for each in aborts], share) * 1e3:.0f} ms)"


def _spread(busy: list[float], idle: list[float]) -> str:
    if not idle:
        return ""
    above, below = percentile(busy, 0.95), percentile(idle, 0.95)
    return f"{above / below:.2f} ({above * 1e3:.0f} ÷ {below * 1e3:.0f} ms)"


def _pair(values: list[float]) -> str:
    if not values:
        return ""
    return " / ".join(f"{percentile(values, share) * 1e3:,.0f}" for share in (0.5, 0.99))


def plot(results: Results, path: Path) -> None:
    """A PNG: tokens/s of each run, and the first token of each turn of a conversation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (rates, times) = pyplot.subplots(1, 2, figsize=(14, 5), layout="constrained")
    names, _, runs = zip(*_runs(results), strict=True)
    bars = rates.barh(names, [run.tokens_per_s for run in runs], color="#3465a4")
    rates.bar_label(bars, fmt="%.0f", padding=3)
    rates.invert_yaxis()
    rates.set_xlabel("tokens/s, all chats at once")
    for name, result in results.engines.items():
        for where, series in (
            ("alone", result.conversation),
            ("in the system", result.conversation_in_system),
        ):
            turns = range(1, len(series) + 1)
            times.plot(turns, [each * 1e3 for each in series], marker=".", label=f"{name}, {where}")
    times.set_ylim(bottom=0)
    times.set_xlabel("turn of the conversation")
    times.set_ylabel("time to the first token, ms")
    times.legend()
    times.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
