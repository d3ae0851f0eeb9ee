"""The token windows that a recipe calibrates, trains and is judged on: disjoint and deterministic.

Conversations are split by the SHA-256 of their id, so that a conversation keeps its part when
others join or leave, and nothing is evaluated on what was used to calibrate or train.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from turnmill.compression.overlap import Passages
from turnmill.compression.step import Options
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Part = Literal["heldout", "calibration", "train"]

#: The first byte of the digest decides: 10 % held out, 15 % calibration, 75 % training.
_HELDOUT_BELOW, _CALIBRATION_BELOW = 26, 64

#: What more chats begin with is a greeting: it does not make one chat, and so one part, of them.
_MOST_OF_ONE_CHAT = 8


class Windows(Options):
    """How many windows of how many tokens. A part with fewer tokens gives fewer windows."""

    length: int = Field(default=256, ge=8, le=8192)
    calibration: int = Field(default=48, ge=1)
    train: int = Field(default=2048, ge=1)
    heldout: int = Field(default=24, ge=1)
    prose: int = Field(default=16, ge=1)


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    #: With the keys `role` and `content`, as chat templates take them.
    messages: tuple[dict[str, str], ...]
    #: Plain text, in place of messages: no chat template is put around it.
    text: str = ""


@dataclass(frozen=True)
class Texts:
    #: Of the user's conversations, int64 [windows, length].
    calibration: "Tensor"
    train: "Tensor"
    #: Of conversations that neither calibration nor training sees.
    heldout: "Tensor"
    #: Of a text that no recipe sees.
    prose: "Tensor"
    #: The held-out conversations as messages, for replies and their scores.
    conversations: tuple[Conversation, ...]
    #: SHA-256 of the calibration and training windows.
    digest: str
    #: A sentence for each reason why conversations were left out.
    notes: tuple[str, ...] = ()

    def judging(self) -> dict[str, str]:
        """Return the SHA-256 of what only judges: of windows, and what replies are compared to."""
        messages = repr([each.messages for each in self.conversations]).encode()
        heldout = hashlib.sha256(_digest(self.heldout).encode() + messages).hexdigest()
        return {"held-out text": heldout, "prose": _digest(self.prose)}


def part_of(conversation_id: str) -> Part:
    """Return the part that the conversation belongs to, in every run."""
    first = hashlib.sha256(conversation_id.encode()).digest()[0]
    if first < _HELDOUT_BELOW:
        return "heldout"
    return "calibration" if first < _CALIBRATION_BELOW else "train"


def longest_chats(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Leave out chats that another one continues; that one takes the id of the shortest.

    A chat that was saved at several lengths, and a prompt with its replies, thus fall into one
    part. Copies of a chat get one id as well. Plain text is returned as it is.
    """
    # Of copies, the first in order gives its id.
    ordered = sorted(conversations, key=_order, reverse=True)
    ids = {_said(each): each.id for each in ordered if each.messages}
    #: Of each chat, those that it continues, the shortest first; it is itself the last.
    chains = {
        said: [said[:end] for end in range(1, len(said) + 1) if said[:end] in ids] for said in ids
    }
    continued = {beginning for chain in chains.values() for beginning in chain[:-1]}
    counts = Counter(
        beginning for said, chain in chains.items() if said not in continued for beginning in chain
    )
    found = [each for each in conversations if not each.messages]
    for each in conversations:
        said = _said(each)
        if said and said not in continued:
            shortest = next(some for some in chains[said] if counts[some] <= _MOST_OF_ONE_CHAT)
            found.append(replace(each, id=ids[shortest]))
    return found


def make_texts(
    conversations: Sequence[Conversation],
    prose: str,
    tokenizer: "PreTrainedTokenizerBase",
    windows: Windows,
) -> Texts:
    """Render conversations with the tokenizer's chat template, split them and cut windows.

    Conversations that the template refuses are left out: some allow no system message, or want
    roles to alternate. So are those that share a passage with the prose.

    Raises:
        InvalidInput: a part has no conversation, or all are left out.
    """
    prose_windows = _cut([tokenizer.encode(prose)], windows.length, windows.prose)
    # What the windows hold, and some more: to decode may give fewer characters.
    judging = prose[: 2 * len(tokenizer.decode(prose_windows.flatten()))]
    renderable, notes = _renderable(tokenizer, conversations)
    renderable, notes_on_prose = _apart_from(judging, renderable)
    notes += notes_on_prose
    parts: dict[Part, list[Conversation]] = {"heldout": [], "calibration": [], "train": []}
    different = list(_unique(sorted(longest_chats(renderable), key=_order)))
    for each in different:
        parts[part_of(each.id)].append(each)
    for part, members in parts.items():
        if not members:
            raise InvalidInput(
                f"{len(different)} different conversations are too few: none falls into the part "
                f"'{part}'. Give at least 50. A teacher's replies (turnmill compress chats) all "
                "train: beside them, give the conversations that it was asked."
                + "".join(f" {note}" for note in notes),
                param="data",
            )

    def windows_of(part: Part, most: int) -> "Tensor":
        rendered = (_tokens(tokenizer, each) for each in parts[part])
        return _cut(rendered, windows.length, most)

    calibration = windows_of("calibration", windows.calibration)
    train = windows_of("train", windows.train)
    return Texts(
        calibration=calibration,
        train=train,
        heldout=windows_of("heldout", windows.heldout),
        prose=prose_windows,
        conversations=tuple(each for each in parts["heldout"] if each.messages),
        digest=_digest(calibration, train),
        notes=notes,
    )


def render(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    end: int | None = None,
    *,
    prompts: bool = False,
) -> str:
    """Render a conversation's messages before `end` with the chat template, which must exist.

    Args:
        prompts: whether the beginning of a reply is to follow.

    Raises:
        InvalidInput: the template refuses these messages.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(conversation.messages[:end]), tokenize=False, add_generation_prompt=prompts
        )
    except TemplateError as error:
        raise InvalidInput(
            f"The model's chat template refuses the conversation '{conversation.id}': {error}",
            param="data",
        ) from error
    return str(text)


def _renderable(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Conversation]
) -> tuple[list[Conversation], tuple[str, ...]]:
    """Return what the chat template takes, and a sentence on the others if there are any."""
    taken, refusals = [], []
    for each in conversations:
        try:
            if _is_chat(tokenizer, each):
                render(tokenizer, each)
            taken.append(each)
        except InvalidInput as refusal:
            refusals.append(refusal)
    if not refusals:
        return taken, ()
    if not taken:
        raise refusals[0]
    return taken, (
        f"{len(refusals)} of {len(conversations)} conversations are left out. First: "
        f"{refusals[0].message}",
    )


def _apart_from(
    prose: str, conversations: Sequence[Conversation]
) -> tuple[list[Conversation], tuple[str, ...]]:
    """Return what shares no passage with the prose, and a sentence on the rest if there is any."""
    passages = Passages(prose)
    shared = [each for each in conversations if passages.are_in(_plain(each))]
    if not shared:
        return list(conversations), ()
    if len(shared) == len(conversations):
        raise InvalidInput(
            "Every conversation of the data shares a passage with the prose, which no step may "
            "see. Give another --prose.",
            param="prose",
        )
    said = (
        f"{len(shared)} of {len(conversations)} conversations are left out: they share a passage "
        f"with the prose, which no step may see. First: '{shared[0].id}'."
    )
    ids = set(map(id, shared))
    return [each for each in conversations if id(each) not in ids], (said,)


def _order(conversation: Conversation) -> tuple[bytes, str, str]:
    """By the id's digest; whatever the order of files, copies and namesakes come in the same."""
    digest = hashlib.sha256(conversation.id.encode()).digest()
    return digest, repr(conversation.messages), conversation.text


def _said(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    return tuple((each["role"], each["content"]) for each in conversation.messages)


def _unique(conversations: Iterable[Conversation]) -> Iterable[Conversation]:
    """Drop repeated texts: under another id, a copy could fall into another part."""
    seen = set()
    for each in conversations:
        content = (repr(each.messages), each.text)
        if content not in seen:
            seen.add(content)
            yield each


def _tokens(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> list[int]:
    text = _plain(conversation)
    is_chat = _is_chat(tokenizer, conversation)
    if is_chat:
        text = render(tokenizer, conversation)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=not is_chat)
    return ids


def _plain(conversation: Conversation) -> str:
    return conversation.text or "\n".join(each["content"] for each in conversation.messages)


def _is_chat(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> bool:
    return bool(conversation.messages) and tokenizer.chat_template is not None


def _cut(rendered: Iterable[list[int]], length: int, most: int) -> "Tensor":
    """Join token lists and cut them into windows; a text shorter than a window is repeated."""
    import torch

    stream: list[int] = []
    for ids in rendered:
        stream += ids
        if len(stream) >= length * most:
            break
    if not stream:
        raise InvalidInput("A text is empty.", param="data")
    while len(stream) < length:
        stream += stream
    count = min(most, len(stream) // length)
    return torch.tensor(stream[: count * length], dtype=torch.int64).reshape(count, length)


def _digest(*windows: "Tensor") -> str:
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in windows)).hexdigest()
