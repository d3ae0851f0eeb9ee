"""Reads what a recipe calibrates, trains and is judged on: JSONL of chats, and plain text.

A JSONL line is an object with `messages` (role and content each, as OpenAI's files for fine-tuning
have them), or with `prompt` and `completion`, and perhaps an `id`. Without one, the digest of its
messages is its id.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from turnmill.compression.texts import Conversation
from turnmill.schemas.errors import InvalidInput

#: Characters of plain text that are split off as one document.
DOCUMENT_CHARS = 4000

#: How names of files end, by what they hold.
_CHATS, _TEXTS = ".jsonl", (".txt", ".md")

ROLES = frozenset({"system", "user", "assistant"})


def read_conversations(paths: Iterable[Path]) -> list[Conversation]:
    """Read files of chats (.jsonl) and of plain text (.txt, .md).

    Raises:
        InvalidInput: a file cannot be read, is of another kind, or a line is no chat; the error
            names file and line.
    """
    found: list[Conversation] = []
    for path in paths:
        ending = path.suffix.lower()
        if ending not in (_CHATS, *_TEXTS):
            raise InvalidInput(
                f"{path} is neither chats ({_CHATS}, one conversation a line) nor plain text "
                f"({', '.join(_TEXTS)}). Convert it, or rename it to what it is.",
                param="data",
            )
        text = read_text(path)
        found += _chats(path, text) if ending == _CHATS else _documents(text)
    return found


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        InvalidInput: it cannot be read, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", param="data") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text.", param="data") from error
    if not text.strip():
        raise InvalidInput(f"{path} is empty.", param="data")
    return text


def _chats(path: Path, text: str) -> Iterator[Conversation]:
    # Not splitlines: JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _chat(json.loads(line))
            except ValueError as error:
                raise InvalidInput(f"{path}, line {number}: {error}.", param="data") from error


def _chat(row: object) -> Conversation:
    if not isinstance(row, dict):
        raise ValueError("expected one JSON object a line")
    if "messages" in row:
        messages = row["messages"]
    elif "prompt" in row and "completion" in row:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    else:
        raise ValueError("expected 'messages', or 'prompt' and 'completion'")
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list with at least one message")
    checked = tuple(_message(each) for each in messages)
    given = row.get("id")
    own = _digest(repr(checked)) if given is None else str(given)
    return Conversation(own, checked)


def _message(message: object) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(f"a message needs a 'role' of {', '.join(sorted(ROLES))}")
    if not isinstance(message.get("content"), str):
        raise ValueError("a message needs a 'content' that is text")
    return {"role": message["role"], "content": message["content"]}


def _documents(text: str) -> Iterator[Conversation]:
    """Split at blank lines into documents of about the same length."""
    document = ""
    for paragraph in [*text.split("\n\n"), None]:
        if document and (paragraph is None or len(document) + len(paragraph) > DOCUMENT_CHARS):
            yield Conversation(_digest(document), (), document)
            document = ""
        if paragraph and paragraph.strip():
            document = f"{document}\n\n{paragraph}" if document else paragraph


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
