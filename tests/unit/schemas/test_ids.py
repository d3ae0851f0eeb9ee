"""Ids: they sort by time, survive being shown, and nothing else is taken for one."""

import time
from uuid import UUID

import pytest

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, derived_id, new_id, parse_id, show_id


def test_an_id_is_a_valid_uuid_of_version_7() -> None:
    made = [new_id() for _ in range(1000)]
    assert {value.version for value in made} == {7}
    assert {value.variant for value in made} == {"specified in RFC 4122"}
    assert len(set(made)) == 1000


def test_ids_of_later_milliseconds_sort_after_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    made = []
    for _ in range(500):
        made.append(new_id())
        clock[0] += 1_000_000
    assert made == sorted(made)
    assert [value.hex for value in made] == sorted(value.hex for value in made)


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id().int >> 80
    assert before <= made <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("prefix", Prefix)
def test_a_shown_id_is_read_back(prefix: Prefix) -> None:
    value = new_id()
    shown = show_id(prefix, value)
    assert shown == f"{prefix.value}_{value.hex}"
    assert parse_id(prefix, shown) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "turn",
        "turn_",
        "turn_1234",
        "conv_0123456789abcdef0123456789abcdef",
        "turn_0123456789abcdef0123456789abcdeg",
        "turn_0123456789abcdef0123456789abcdef0",
        "turn_{0123456789abcdef0123456789abcd}",
        "turn_01234567-89ab-cdef-0123-456789ab",
        "0123456789abcdef0123456789abcdef",
        "turn_0123456789abcdef0123456789abcdef\n",
        "x" * 100_000,
    ],
)
def test_anything_else_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_id(Prefix.TURN, text)
    assert "turn_<32 hex digits>" in refused.value.message
    assert len(refused.value.message) < 200


def test_derived_ids_repeat_for_the_same_names_only() -> None:
    space = UUID(int=1)
    assert derived_id(space, "a", "b") == derived_id(space, "a", "b")
    others = [
        derived_id(space, "ab"),
        derived_id(space, "b", "a"),
        derived_id(UUID(int=2), "a", "b"),
    ]
    assert len({derived_id(space, "a", "b"), *others}) == 4
