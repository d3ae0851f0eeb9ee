"""Lists for programs: which commands have `--json`, and that docs/operations.md describes them.

`python tests/unit/producer/views/test_lists.py` prints the table of the docs.
"""

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from typer.main import get_command

from turnmill.producer.channels.deliveries import DeliveryPage
from turnmill.producer.cli.app import app
from turnmill.producer.cli.compression.catalogue import Available
from turnmill.producer.cli.lists import models, resources, shapes
from turnmill.producer.operations.handed_off import HandedOffPage
from turnmill.producer.operations.status import Status, WorkerStatus
from turnmill.producer.operations.turns import TurnPage
from turnmill.schemas.parked import ParkedPage

DOCS = Path(__file__).parents[4] / "docs" / "operations.md"

#: What each command's `--json` prints.
LISTS: dict[str, Any] = {
    "batch list": shapes.BatchPage,
    "batch status": shapes.ShownProgress,
    "bots list": resources.BotList,
    "channels list": shapes.ChannelList,
    "conversations list": HandedOffPage,
    "deliveries list": DeliveryPage,
    "gaps list": shapes.GapList,
    "keys list": shapes.KeyList,
    "knowledge list": shapes.CollectionList,
    "knowledge show": shapes.DocumentPage,
    "lanes list": (Status, {"lanes", "pauses"}),
    "models available": list[Available],
    "models list": models.ModelList,
    "models list --history": models.ModelHistory,
    "parked list": ParkedPage,
    "studies list": shapes.StudyList,
    "tenants list": shapes.TenantList,
    "turns list": TurnPage,
    "users erasures": shapes.ErasureList,
    "users list": resources.UserPage,
    "workers list": list[WorkerStatus],
}


def commands(command: Any = None, *path: str) -> dict[str, Any]:
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(path): command}
    found: dict[str, Any] = {}
    for name in inner:
        found |= commands(inner[name], *path, name)
    return found


def fields(shape: Any) -> str:
    """The names of a row's members."""
    return ", ".join(f"`{name}`" for name in shape.model_fields)


def describe(shape: Any) -> str:
    """An object's members, and of each list in it those of its rows."""
    if isinstance(shape, tuple):
        shape, wanted = shape
    elif isinstance(shape, type) and issubclass(shape, BaseModel):
        wanted = shape.model_fields.keys()
    else:
        return f"an array of {fields(get_args(shape)[0])}"
    parts = []
    for name, field in shape.model_fields.items():
        if name in wanted:
            row = next((arg for arg in get_args(field.annotation) if isinstance(arg, type)), None)
            is_rows = row is not None and row is not type(None) and hasattr(row, "model_fields")
            parts.append(f"`{name}`: {fields(row)}" if is_rows else f"`{name}`")
    return "; ".join(parts)


def table() -> str:
    head = "| `turnmill …` | `--json` prints |\n|---|---|\n"
    return head + "".join(f"| `{name}` | {describe(each)} |\n" for name, each in LISTS.items())


def test_every_list_is_there_for_programs() -> None:
    found = commands()
    named = {name.partition(" --")[0] for name in LISTS}
    assert {name for name in found if name.endswith(" list")} <= named
    silent = [name for name in named if "--json" not in options(found[name])]
    assert silent == []


def options(command: Any) -> list[str]:
    return [opt for param in command.params for opt in param.opts]


def test_the_docs_have_every_list_with_its_members() -> None:
    assert table() in DOCS.read_text(), "python tests/unit/producer/views/test_lists.py prints it"


def test_every_shape_has_a_schema() -> None:
    for shape in LISTS.values():
        known = shape[0] if isinstance(shape, tuple) else shape
        assert TypeAdapter(known).json_schema()


if __name__ == "__main__":
    sys.stdout.write(table())
