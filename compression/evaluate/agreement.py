"""How closely a model follows the original: distributions, first choices, greedy replies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnmill.compression.evaluate.intervals import mean
from turnmill.compression.evaluate.perplexity import logits_of, window_loss
from turnmill.compression.step import Progress, Silent
from turnmill.compression.texts import Conversation, render

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The original's distribution is kept at every fourth position: 100 kB each at 49,152 tokens.
EVERY = 4


@dataclass(frozen=True)
class Original:
    """What the original model answers to windows, so that it need not stay in memory."""

    losses: list[float]
    #: Its most probable next token, int64 [windows, length].
    first: "Tensor"
    #: Its log-probabilities at every fourth position, float16 [windows, length / 4, vocabulary].
    log_probabilities: "Tensor"


@dataclass(frozen=True)
class Followed:
    """What a model answers to the same windows; one number a window."""

    losses: list[float]
    #: KL(original ‖ model), nats, mean over every fourth position.
    divergence: list[float]
    #: The share of positions at which both put the same token first.
    first_equal: list[float]


def listen(
    model: "PreTrainedModel", windows: "Tensor", progress: Progress | None = None
) -> Original:
    """Run the original over windows, int64 [n, length]."""
    import torch

    progress = progress or Silent()
    losses, first, kept = [], [], []
    for window in windows:
        logits = logits_of(model, window)
        losses.append(window_loss(logits, window))
        first.append(logits.argmax(-1))
        kept.append(logits[::EVERY].log_softmax(-1).half())
        progress.advance()
    return Original(losses, torch.stack(first), torch.stack(kept))


def follow(
    model: "PreTrainedModel",
    windows: "Tensor",
    original: Original,
    progress: Progress | None = None,
) -> Followed:
    """Run a model over the windows that the original has answered.

    Models of one family pad their vocabularies to other sizes, with tokens that nobody writes:
    they are compared by the tokens that both have.
    """
    progress = progress or Silent()
    losses, divergence, equal = [], [], []
    for index, window in enumerate(windows):
        logits = logits_of(model, window)
        losses.append(window_loss(logits, window))
        # A position whose logits are no numbers puts no token first.
        same = (logits.argmax(-1) == original.first[index]) & logits.amax(-1).isfinite()
        equal.append(float(same.float().mean()))
        divergence.append(_divergence(original.log_probabilities[index].float(), logits[::EVERY]))
        progress.advance()
    return Followed(losses, divergence, equal)


def _divergence(log_p: "Tensor", logits: "Tensor") -> float:
    """Return the mean over positions of KL(p ‖ softmax(logits)) in nats; rounding gives ≥ 0.

    Infinite where the logits are no numbers.
    """
    shared = min(log_p.shape[-1], logits.shape[-1])
    log_p, log_q = log_p[..., :shared], logits.log_softmax(-1)[..., :shared]
    p = log_p.exp()
    value = float((p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1).mean())
    return max(0.0, value) if math.isfinite(value) else math.inf


def greedy_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    *,
    max_tokens: int,
    progress: Progress | None = None,
) -> list[str]:
    """Reply to each conversation's first user message, one at a time: padding would change bits."""
    import torch

    progress = progress or Silent()
    replies = []
    for conversation in conversations:
        ids = _prompt(tokenizer, conversation)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
        replies.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        progress.advance()
    return replies


def human_replies(conversations: Sequence[Conversation]) -> list[str]:
    """Return what the conversations themselves hold where `greedy_replies` answers."""
    return [each.messages[_opening(each)]["content"] for each in conversations]


def answerable(conversations: Sequence[Conversation], most: int) -> list[Conversation]:
    """Return the first conversations that have a user message with an assistant's reply."""
    return [each for each in conversations if _opening(each)][:most]


def reply_agreement(replies: Sequence[str], originals: Sequence[str]) -> list[float]:
    """Return for each reply the share of its words up to the first that the original lacks."""
    return [
        _shared(mine.split(), theirs.split())
        for mine, theirs in zip(replies, originals, strict=True)
    ]


def equal_share(replies: Sequence[str], originals: Sequence[str]) -> float:
    """Return the share of replies that equal the original's to the letter."""
    return mean([float(mine == theirs) for mine, theirs in zip(replies, originals, strict=True)])


def _shared(mine: Sequence[str], theirs: Sequence[str]) -> float:
    longest = max(len(mine), len(theirs))
    for index, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return index / longest
    return min(len(mine), len(theirs)) / longest if longest else 1.0


def _opening(conversation: Conversation) -> int:
    """Return the index of the first assistant message that follows a user's; 0 if none does."""
    roles = [message["role"] for message in conversation.messages]
    for index in range(1, len(roles)):
        if roles[index - 1 : index + 1] == ["user", "assistant"]:
            return index
    return 0


def _prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> "Tensor":
    """Render the conversation up to the reply, int64 [1, tokens]."""
    import torch

    end = _opening(conversation)
    if tokenizer.chat_template is None:
        text = "\n".join(each["content"] for each in conversation.messages[:end]) + "\n"
    else:
        text = render(tokenizer, conversation, end, prompts=True)
    ids = tokenizer.encode(text, add_special_tokens=tokenizer.chat_template is None)
    return torch.tensor([ids], dtype=torch.int64)
