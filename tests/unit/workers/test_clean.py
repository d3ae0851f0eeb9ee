"""Text from outside: whatever comes in, only what PostgreSQL and UTF-8 can hold passes."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turnmill.producer.channels.teams.events import _comment
from turnmill.schemas.content import storable_json
from turnmill.schemas.errors import EngineUnavailable, InvalidInput
from turnmill.schemas.records.table import read_table
from turnmill.workers.consumer.availability import Availability
from turnmill.workers.delivery.calls.rest import read_body
from turnmill.workers.engines.base import Chunk
from turnmill.workers.turn.clean import clean, storable

SMILE = "\U0001f600"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        (f"{SMILE} 客服", f"{SMILE} 客服"),
        ("a\0b", "a\ufffdb"),
        ("cut \ud83d", "cut \ufffd"),
        ("\ude00 cut", "\ufffd cut"),
        ("\ud83dx\ude00", "\ufffdx\ufffd"),
        ("\ud83d\ud83d\ude00", f"\ufffd{SMILE}"),
    ],
)
def test_what_cannot_be_stored_is_replaced_and_the_rest_stays(text: str, expected: str) -> None:
    assert storable(text) == expected


def test_however_a_text_is_cut_into_chunks_it_reads_the_same() -> None:
    chance = random.Random(11)
    for _ in range(500):
        characters = chance.choices("ab\0\ud83d\ude00\ufffd客", k=chance.randrange(1, 12))
        cuts = [Chunk(character, 1) for character in characters]
        text = "".join(chunk.text for chunk in clean([*cuts, Chunk("", finish_reason="stop")]))
        assert text == storable("".join(characters))
        text.encode()


def test_all_but_the_text_of_a_chunk_stays_as_it_was() -> None:
    last = Chunk("\0", 3, "length", prompt_tokens=5, cached_tokens=2)
    assert list(clean([last])) == [Chunk("\ufffd", 3, "length", prompt_tokens=5, cached_tokens=2)]


#: As platforms may write it: JSON escapes what UTF-8 cannot encode.
UNSTORABLE = {"id": "\0", "error": ["cut \ud83d", {"\ude00": SMILE}]}
STORABLE = {"id": "\ufffd", "error": ["cut \ufffd", {"\ufffd": SMILE}]}


def test_what_platforms_answer_is_cleaned_at_any_depth() -> None:
    assert storable_json(UNSTORABLE) == STORABLE
    assert read_body(json.dumps(UNSTORABLE).encode()) == STORABLE
    assert _comment(json.dumps({"feedbackText": "cut \ud83d"})) == "cut \ufffd"


def test_the_cells_of_a_table_are_cleaned(tmp_path: Path) -> None:
    """Of questions, cases and candidates, which are searched for and stored."""
    (tmp_path / "cases.jsonl").write_text(json.dumps(UNSTORABLE))
    (tmp_path / "cases.csv").write_text("id\ncut \0\n")
    assert [cells for _, cells in read_table(tmp_path / "cases.jsonl", ["id"])] == [STORABLE]
    assert [cells for _, cells in read_table(tmp_path / "cases.csv", ["id"])] == [
        {"id": "cut \ufffd"}
    ]


def test_a_cell_is_read_or_refused_by_its_line_however_deeply_it_is_nested(tmp_path: Path) -> None:
    """Whether the decoder gives up, or the cleaning of what it read."""
    path, refused = tmp_path / "cases.jsonl", []
    told = re.escape(f"{path}, line 2") + "(, column 'id')?: is not JSON that can be read[.]"
    for depth in (100, 600, 900, 1000, 100_000):
        path.write_text('{"id": "a"}\n{"id": ' + "[" * depth + "1" + "]" * depth + "}\n")
        try:
            assert len(list(read_table(path, ["id"]))) == 2
        except InvalidInput as error:
            assert re.fullmatch(told, error.message)
            refused.append(depth)
    assert 100 not in refused
    assert {1000, 100_000} <= {*refused}


def test_why_an_engine_is_away_does_not_keep_its_worker_from_writing_that_it_lives() -> None:
    leases: Any = SimpleNamespace(unavailable_because=None)
    engine: Any = None
    Availability(engine, leases).report(EngineUnavailable("its model is 'cut \ud83d'"))
    assert leases.unavailable_because == "its model is 'cut \ufffd'"


@pytest.mark.parametrize("folder", ["producer/channels", "workers/delivery"])
def test_nothing_reads_json_of_platforms_without_cleaning_it(folder: str) -> None:
    root = Path(__file__).parents[3]
    readers = [path for path in (root / folder).rglob("*.py") if "json.loads(" in path.read_text()]
    assert readers
    assert [path for path in readers if "storable" not in path.read_text()] == []
