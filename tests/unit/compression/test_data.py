"""Files of chats and of text, and the masking of personal data."""

import json
from pathlib import Path
from typing import Any

import pytest

from turnmill.compression.data import DOCUMENT_CHARS, read_conversations
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.safety.personal import mask_broadly


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_chats_are_read_in_both_spellings(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(
        tmp_path / "a.jsonl",
        {"id": 7, "messages": messages},
        {"prompt": "Hi", "completion": "Hello"},
    )

    first, second = read_conversations([path])

    assert first.id == "7"
    assert list(first.messages) == list(second.messages) == messages


def test_a_chat_without_an_id_has_the_same_one_in_every_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Hi", "completion": "Hello"})

    assert read_conversations([path]) == read_conversations([path])


def test_chats_that_begin_alike_have_ids_of_their_own(tmp_path: Path) -> None:
    greeted = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Welcome."}]
    asked = [[*greeted, {"role": "user", "content": f"Parcel {number}?"}] for number in range(20)]
    path = write(tmp_path / "a.jsonl", *({"messages": each} for each in asked))

    assert len({each.id for each in read_conversations([path])}) == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "expected one JSON object a line"),
        ('{"text": "x"}', "expected 'messages'"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', "'role' of assistant, system, user"),
        ('{"messages": [{"role": "user", "content": 3}]}', "'content' that is text"),
        ('{"messages": ', "line 2"),
    ],
)
def test_a_line_that_is_no_chat_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")

    with pytest.raises(InvalidInput, match=rf"a\.jsonl, line 2: .*{said}|{said}"):
        read_conversations([path])


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a"])
def test_a_file_of_another_kind_is_not_taken_for_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"messages": []}]')

    with pytest.raises(InvalidInput, match=r"neither chats \(\.jsonl, .* text \(\.txt, \.md\)"):
        read_conversations([tmp_path / name])


def test_the_case_of_an_ending_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text('{"prompt": "a", "completion": "b"}\n')

    assert read_conversations([tmp_path / "A.JSONL"])[0].messages


def test_plain_text_is_split_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"{number} " + "word " * 150 for number in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))

    documents = read_conversations([tmp_path / "a.txt"])

    assert "\n\n".join(each.text for each in documents) == "\n\n".join(paragraphs)
    assert max(len(each.text) for each in documents) <= DOCUMENT_CHARS
    assert not any(each.messages for each in documents)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)

    with pytest.raises(InvalidInput, match=r"a\.txt"):
        read_conversations([tmp_path / "a.txt"])


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ada.l+x@mail.example.org, please", "write to <email>, please"),
        ("see https://shop.example/o?id=7&k=a.", "see <url>"),
        ("IBAN DE89 3704 0044 0532 0130 00 thanks", "IBAN <account> thanks"),
        ("call +49 (0)30 1234-5678 today", "call <number> today"),
        ("我的电话是13812345678。", "我的电话是<number>。"),
        ("身份证 11010519491231002X", "身份证 <number>"),
        ("card 4111 1111 1111 1111", "card <number>"),
        ("from 192.168.0.12 and 2001:db8:0:1::7f", "from <address> and <address>"),
        ("order 4411 from 2026, 3 cups at 10:30", "order 4411 from 2026, 3 cups at 10:30"),
    ],
)
def test_personal_data_of_a_known_form_is_masked(text: str, masked: str) -> None:
    assert mask_broadly(text) == masked
