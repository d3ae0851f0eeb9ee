"""The checker finds what is wrong: records and tables that contradict each other on purpose."""

from collections.abc import Callable
from pathlib import Path

import pytest

from turnmill.infra.chaos.breaking.engine import digest
from turnmill.infra.chaos.checker import check
from turnmill.infra.chaos.observed import AttemptRow, Observed, TurnRow
from turnmill.infra.chaos.plan import make_plan
from turnmill.infra.chaos.record import Entry, Intent, Observation, Promise, Record, read_record


def conversation(size: int) -> tuple[list[Entry], Observed]:
    """A client's record of one conversation, and tables that hold exactly that."""
    entries: list[Entry] = []
    turns: list[TurnRow] = []
    said: list[tuple[str, str]] = []
    for number in range(1, size + 1):
        key, text = f"key{number}", f"c1/{number} hello"
        entries += [
            Intent(key, "c1", number, text, number),
            Promise(key, f"turn_{key}", number, 0, 1),
        ]
        reply = f"{digest([*said, ('user', text)])} {text}"
        said += [("user", text), ("assistant", reply)]
        entries.append(Observation(key, reply, number, is_whole=True))
        turns.append(
            TurnRow(
                turn_id=key, key=key, conversation_id="c1", seq=number, state="completed",
                error_code=None, text=text, accepted_at=number, settled_at=number + 0.5,
                reply=reply, reply_attempt=1, token_count=3,
            )
        )  # fmt: skip
    attempts = {
        turn.turn_id: [AttemptRow(turn.turn_id, 1, "w1", "answered", turn.seq, turn.seq + 0.5)]
        for turn in turns
    }
    return entries, Observed(turns, attempts)


def changed(observed: Observed, number: int, **fields: object) -> Observed:
    turns = [
        turn._replace(**fields) if turn.seq == number else turn  # type: ignore[arg-type]
        for turn in observed.turns
    ]
    return Observed(turns, observed.attempts)


def test_kept_promises_leave_every_set_empty() -> None:
    entries, observed = conversation(5)
    assert check(entries, observed).is_clean


def answered_again(observed: Observed) -> Observed:
    attempts = dict(observed.attempts)
    attempts["key2"] = [*attempts["key2"], attempts["key2"][0]._replace(number=2)]
    return Observed(observed.turns, attempts)


WRONGS: dict[str, tuple[str, Callable[[Observed], Observed]]] = {
    "a turn is gone": (
        "lost",
        lambda o: Observed([t for t in o.turns if t.seq != 2], o.attempts),
    ),
    "a turn is still open": ("lost", lambda o: changed(o, 2, state="queued")),
    "a turn failed": ("lost", lambda o: changed(o, 2, state="failed", reply=None)),
    "an innocent is parked": (
        "innocents parked",
        lambda o: changed(o, 2, state="parked", reply=None, reply_attempt=None),
    ),
    "a reply is gone": ("lost", lambda o: changed(o, 2, reply=None, reply_attempt=None)),
    "two turns for one key": ("duplicated", lambda o: changed(o, 2, key="key1")),
    "answered twice": ("duplicated", answered_again),
    "a reply of another attempt": ("duplicated", lambda o: changed(o, 2, reply_attempt=7)),
    "another order": ("reordered", lambda o: changed(o, 2, seq=9)),
    "begun too early": ("reordered", lambda o: changed(o, 1, settled_at=2.1)),
    "a turn of nobody": ("phantom", lambda o: changed(o, 2, key="unknown")),
    "a reply to something else": ("phantom", lambda o: changed(o, 2, reply="00000000 no")),
    "another text": ("phantom", lambda o: changed(o, 2, text="c1/2 hallo")),
    "another history": (
        "history mismatch",
        lambda o: changed(o, 2, reply=f"00000000 {o.turns[1].text}"),
    ),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_a_broken_promise_is_found_in_its_set(wrong: str) -> None:
    kind, spoil = WRONGS[wrong]
    entries, observed = conversation(3)
    assert check(entries, spoil(observed)).sets[kind]


def test_text_shown_to_a_reader_must_be_in_the_reply() -> None:
    entries, observed = conversation(1)
    reply = observed.turns[0].reply or ""
    assert check([*entries, Observation("key1", reply[:9], 2, is_whole=False)], observed).is_clean
    for seen in (
        Observation("key1", "else", 2, is_whole=False),
        Observation("key1", reply[:9], 2, True),
    ):
        assert check([*entries, seen], observed).phantom


def test_a_poison_turn_must_end_parked() -> None:
    entries = [Intent("k", "c", 1, "[[crash]] hello", 1), Promise("k", "turn_t", 1, 0, 1)]
    turn = TurnRow(
        "t", "k", "c", 1, "parked", "worker_lost", "[[crash]] hello", 1, 2, None, None, 0
    )
    assert check(entries, Observed([turn], {})).is_clean
    answered = turn._replace(state="completed", reply="0 hello", reply_attempt=1)
    assert check(entries, Observed([answered], {})).lost


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries, _ = conversation(3)
    with Record(tmp_path / "record") as record:
        for entry in entries:
            record.add(entry)
    assert list(read_record(record.path)) == entries


def test_equal_seeds_make_equal_plans() -> None:
    def first(seed: int) -> list[object]:
        plan = make_plan(seed, {"a": 1.0, "b": 3.0}, 4.0)
        return [next(plan) for _ in range(50)]

    assert first(7) == first(7)
    assert first(7) != first(8)
