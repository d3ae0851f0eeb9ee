"""The record of computed blocks."""

from turnmill.workers.engines.local.blocks import BlockRecord

PROMPT = list(range(10))


def test_whole_blocks_of_a_computed_text_are_known() -> None:
    record = BlockRecord(block_size=4, capacity=10)
    assert record.known_tokens(PROMPT) == 0
    record.add(PROMPT)
    assert record.known_tokens([*PROMPT, 77]) == 8
    assert record.known_tokens([*PROMPT[:5], 77, 78, 79, 80]) == 4


def test_a_block_counts_only_after_the_same_beginning() -> None:
    record = BlockRecord(block_size=4, capacity=10)
    record.add(PROMPT)
    assert record.known_tokens([77, *PROMPT[1:]]) == 0


def test_the_last_token_is_always_computed() -> None:
    record = BlockRecord(block_size=4, capacity=10)
    record.add(PROMPT[:8])
    assert record.known_tokens(PROMPT[:8]) == 4


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    record = BlockRecord(block_size=4, capacity=2)
    for start in (0, 100, 200):
        record.add(range(start, start + 4))
        assert record.known_tokens(range(5)) == 4
    assert record.known_tokens(range(100, 105)) == 0
    assert record.known_tokens(range(200, 205)) == 4


def test_a_text_that_ended_in_the_middle_of_a_block_is_known_to_what_continues_it() -> None:
    record = BlockRecord(block_size=4, capacity=10)
    record.add(PROMPT)
    end = record.open_end([*PROMPT, 77])
    assert end is not None
    assert record.open_end([*PROMPT, 78, 79]) == end
    assert record.open_end(PROMPT) is None, "computed whole, there is nothing to write"
    assert record.open_end([*PROMPT[:9], 77]) is None


def test_a_text_that_is_being_continued_has_no_end() -> None:
    record = BlockRecord(block_size=4, capacity=10)
    record.add(PROMPT, ends_here=False)
    assert record.open_end([*PROMPT, 77]) is None
