"""Second ids of tokens, which keep the namespaces of OpenVINO's prefix cache apart."""

from collections.abc import Callable

import pytest

from turnmill.workers.engines.openvino.namespaces import BITS, Namespaces, have_second_ids

ROWS = 1000


def test_namespaces_differ_within_the_first_block_and_mean_the_same_tokens() -> None:
    tokens = list(range(100))
    namespaces = Namespaces(ROWS)
    ids = [namespaces.ids(tokens, f"tenant {number}") for number in range(300)]
    assert len({tuple(each[:BITS]) for each in ids}) == 300
    assert all([each % ROWS for each in one] == tokens for one in ids)
    assert all(one[BITS:] == tokens[BITS:] for one in ids)
    assert namespaces.ids(tokens, "tenant 7") == ids[7]


def test_the_empty_namespace_changes_nothing() -> None:
    namespaces = Namespaces(ROWS)
    namespaces.ids([1], "first")
    assert namespaces.ids(range(40), "") == list(range(40))
    assert namespaces.ids([], "first") == []


def refusing(ids: list[int]) -> list[int]:
    if min(ids) < 0:
        raise RuntimeError("out of bounds")
    return ids


@pytest.mark.parametrize(
    ("generate", "expected"),
    [
        (lambda ids: [sum(each % ROWS for each in ids)], True),
        (lambda ids: [sum(each % (ROWS + 24) for each in ids)], False),
        (refusing, False),
    ],
    ids=["counts from the end", "has padded rows", "refuses"],
)
def test_a_model_is_asked_whether_it_knows_second_ids(
    generate: Callable[[list[int]], list[int]], expected: bool
) -> None:
    assert have_second_ids(ROWS, generate) is expected
