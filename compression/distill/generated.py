"""Sequence-level distillation: the teacher's own replies as training text (Kim and Rush 2016).

The replies come out of the running system. Conversations become a backlog, `turnmill batch run`
has the teacher answer it, and backlog and results together become conversations again. Nothing
else needs the teacher then: it may be a model behind any engine.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from turnmill.compression.texts import Conversation, longest_chats, part_of
from turnmill.schemas.errors import InvalidInput


def backlog_of(conversations: Iterable[Conversation]) -> Iterator[dict[str, object]]:
    """Yield a backlog's rows: each training conversation up to its last user message.

    Conversations that are calibrated or judged on are left out: no student may learn them. One
    whose id was there before, as a copy has, gets another.
    """
    taken: set[str] = set()
    for each in longest_chats(list(conversations)):
        messages = list(each.messages)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if messages and part_of(each.id) == "train":
            own = _unlike(taken, each.id)
            taken.add(own)
            yield {"id": own, "messages": messages}


def chats_of(backlog: Path, results: Path) -> Iterator[dict[str, object]]:
    """Yield chats, as `--data` reads them, of a backlog and the results of its batch.

    Rows that are not answered are left out. A chat has its row's id, and so falls into the part
    of the recipe's text that its conversation belongs to.

    Raises:
        InvalidInput: a file is no JSONL, or a result belongs to no row.
    """
    prompts = {_id_of(row, number): row for number, row in _rows(backlog)}
    for number, result in _rows(results):
        if result.get("state") != "completed" or not result.get("reply"):
            continue
        row = prompts.get(str(result.get("id")))
        if row is None:
            raise InvalidInput(
                f"{results}, line {number}: {backlog} has no row '{result.get('id')}'. Give the "
                "backlog that these results came from.",
                param="results",
            )
        reply = {"role": "assistant", "content": result["reply"]}
        yield {"id": str(result["id"]), "messages": [*_messages(row), reply]}


def _unlike(taken: Container[str], given: str) -> str:
    """Return the id, or one made of it, that is not taken and falls into the training part."""
    names = chain([given], (f"{given}-{number}" for number in count(2)))
    return next(each for each in names if each not in taken and part_of(each) == "train")


def _id_of(row: Mapping[str, object], number: int) -> str:
    return str(row.get("id") or number)


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    given: list[dict[str, str]] = row.get("messages") or [
        {"role": "user", "content": row.get("prompt", "")}
    ]
    return [*system, *given]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as UTF-8 text: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise InvalidInput(f"{path}, line {number}: expected one JSON object a line.")
        yield number, row
