"""`turnmill knowledge calibrate`: when a bot is to say that it does not know."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.knowledge.asking import asking
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.calibration.questions import read_labelled
from turnmill.producer.knowledge.calibration.run import (
    DEFAULT_PRECISION,
    calibrate_collection,
    measure_gate,
)
from turnmill.producer.knowledge.lookup import Collection, find_collection
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.store.knowledge.gate import Gate, Measured

console = make_console()


def calibrate(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Its name.")],
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.99,
            help="Of the questions that pass: the share whose answer is to be shown. As before "
            f"when left out, or {DEFAULT_PRECISION}.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="People's questions: a table with the columns question and answered_by (the "
            "document that answers it, or the heading in it; empty: nothing does)."
        ),
    ] = None,
    measure_only: Annotated[
        bool,
        typer.Option("--measure-only", help="Measure the gate as it is with these questions."),
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Fit the gate that tells what a collection answers from what it does not.

    The questions are made of the collection's own passages: each has an answer, and none when its
    passage is left out. At least 30 questions of people's choose the threshold instead.

    Example: turnmill knowledge calibrate shop --precision 0.95

    Example: turnmill knowledge calibrate shop --questions asked.csv --measure-only
    """
    labelled = read_labelled(questions) if questions else []
    if measure_only and not labelled:
        raise InvalidInput("There is nothing to measure with: --questions", param="questions")
    with open_system(tenant=tenant) as system:
        known = find_collection(system.database, system.tenant_id, collection)
        wanted = precision or (known.gate.wanted if known.gate else DEFAULT_PRECISION)
        place = (system.database, system.tenant_id, collection)
        with asking(system, collection) as ask:
            if measure_only:
                _show_measured(measure_gate(*place, labelled, ask=ask), "your questions")
            else:
                show_gate(collection, calibrate_collection(*place, wanted, labelled, ask=ask))


def recalibrate(system: System, name: str, *, always: bool = False) -> None:
    """Calibrate a collection that has no gate, or whose passages changed much since; `always`:
    whatever gate it has.
    """
    known = find_collection(system.database, system.tenant_id, name)
    if not (always or known.gate is None or known.is_stale):
        return
    if known.gate is not None and known.gate.is_labelled:
        command = f"turnmill knowledge calibrate {name} --questions FILE{system.suffix}"
        console.print(plain(f"Its gate is stale. With your questions: {command}"), soft_wrap=True)
        return
    wanted = known.gate.wanted if known.gate else DEFAULT_PRECISION
    place = (system.database, system.tenant_id, name)
    try:
        with asking(system, name) as ask:
            show_gate(name, calibrate_collection(*place, wanted, ask=ask))
    except InvalidInput as error:
        console.print(plain(f"Not calibrated: {error.message}"), soft_wrap=True)


def show_gate(name: str, gate: Gate) -> None:
    console.print(plain(f"'{name}' is calibrated to a precision of {gate.wanted:.0%}."))
    _show_measured(gate.measured, "your questions" if gate.is_labelled else "made questions")


def gate_cells(collection: Collection) -> tuple[str, str, str]:
    """Show a gate in a list: precision with its interval, coverage, and whether it holds still."""
    gate = collection.gate
    if gate is None:
        return "-", "-", "not calibrated"
    return (
        _precision(gate.measured),
        f"{gate.measured.coverage:.0%}",
        "stale" if collection.is_stale else f"calibrated {gate.calibrated_at:%Y-%m-%d}",
    )


def _show_measured(measured: Measured, kind: str) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "measured with": f"{measured.answerable} {kind} that have an answer, and "
        f"{measured.unanswerable} that have none",
        "precision": f"{_precision(measured)}: of the questions that pass, those whose answer "
        "is shown",
        "half and half": f"{measured.balanced or 0.0:.0%}: the precision where as many questions "
        "have no answer as have one",
        "coverage": f"{measured.coverage:.0%}: of the questions that have an answer, those that "
        "pass",
        "AUROC": f"{measured.auroc:.3f}",
    }
    if measured.balanced is None:
        del rows["half and half"]
    for title, value in rows.items():
        table.add_row(f"[dim]{title}[/]", plain(value))
    console.print(table)


def _precision(measured: Measured) -> str:
    interval = f"{measured.precision_low:.0%} to {measured.precision_high:.0%}"
    return f"{measured.precision:.0%} ({interval})"
