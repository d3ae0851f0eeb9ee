"""Questions that ask about the same are one group, whatever their script."""

from turnmill.producer.knowledge.gaps.grouping import group, similarity, weigher
from turnmill.schemas.store.knowledge.lexemes import lexemes

COMMON = dict.fromkeys(("how", "do", "can", "i", "my", "a", "the", "is"), 90)
WEIGH = weigher(COMMON, passage_count=100)


def groups(*questions: str) -> list[list[int]]:
    return group(questions, WEIGH)


def test_equal_and_near_questions_are_one_group() -> None:
    assert groups(
        "How do I return a kettle?",
        "Is the shop open on Sunday?",
        "How can I return my kettle?",
        "how do i RETURN a kettle",
    ) == [[0, 2, 3], [1]]


def test_common_words_alone_make_no_group() -> None:
    assert groups("How do I return a kettle?", "How do I pay a bill?") == [[0], [1]]


def test_chinese_questions_are_grouped_by_their_pairs_of_characters() -> None:
    assert groups("怎么申请电子发票？", "电子发票怎么申请", "水壶可以退货吗？") == [[0, 1], [2]]


def test_questions_without_a_word_are_groups_of_their_own() -> None:
    assert groups("?!", "...") == [[0], [1]]
    assert groups() == []
    assert similarity(lexemes("?"), lexemes("!"), WEIGH) == 0.0


def test_thousands_of_questions_are_grouped_in_a_moment() -> None:
    questions = [f"How do I return box{n} of shelf{n % 50}?" for n in range(3000)]
    assert len(group(questions, WEIGH)) == 50
