"""The next token of each turn of a batch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.torch.grammars import Matcher


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before the next token of a turn."""

    #: Of its prompt and its reply.
    tokens: Sequence[int]
    #: Where the reply begins.
    reply_at: int


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Natural log-probabilities of the next token [vocabulary], and how many are told."""

    values: torch.Tensor
    count: int

    def of(self, token: int) -> tuple[tuple[int, float], ...]:
        """That of a token, then the highest ones, as `Token` has them."""
        top, ids = self.values.topk(self.count)
        highest = zip(ids.tolist(), top.tolist(), strict=True)
        return (token, float(self.values[token])), *highest


def log_probabilities(
    logits: torch.Tensor, params: Sequence[GenerationParams]
) -> dict[int, LogProbabilities]:
    """Those of the rows of `logits` [turns, vocabulary] whose turns ask for them, by row."""
    return {
        row: LogProbabilities(torch.log_softmax(logits[row].float(), dim=-1), each.logprobs)
        for row, each in enumerate(params)
        if each.logprobs is not None
    }


def next_tokens(
    logits: torch.Tensor,
    params: Sequence[GenerationParams],
    generators: Sequence[torch.Generator],
    contexts: Sequence[Context],
    matchers: Sequence[Matcher | None],
) -> list[int]:
    """Choose one token for each row of `logits` [turns, vocabulary]: the likeliest, or one drawn
    at random. A matcher says which ones may be chosen, and is told which one was.
    """
    for row, (each, context) in enumerate(zip(params, contexts, strict=True)):
        if each.repetition_penalty not in (None, 1):
            logits[row] = penalize(logits[row], context.tokens, each.repetition_penalty)
        if each.penalizes_replies:
            reply = context.tokens[context.reply_at :]
            logits[row] = penalize_repeated(logits[row], reply, each)
        if each.logit_bias:
            logits[row] = shift(logits[row], each.logit_bias)
    for row, matcher in enumerate(matchers):
        if matcher is not None:
            allowed = matcher.allowed(logits.shape[-1], logits.device)
            logits[row] = logits[row].masked_fill(~allowed, float("-inf"))
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (each, generator) in enumerate(zip(params, generators, strict=True)):
        if each.temperature:
            tokens[row] = sample(logits[row].float(), each, generator)
    for matcher, token in zip(matchers, tokens, strict=True):
        if matcher is not None:
            matcher.take(token)
    return tokens


def sample(logits: torch.Tensor, params: GenerationParams, generator: torch.Generator) -> int:
    """Draw a token at `temperature` from the `top_k` likeliest ones, of these from the ones above
    `min_p`, and of these from the nucleus of `top_p`.
    """
    probabilities = torch.softmax(logits / params.temperature, dim=-1)
    if not params.sampling.keys() & {"top_k", "min_p", "top_p"}:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True)
    if params.top_k:
        ordered[params.top_k :] = 0
    if params.min_p:
        ordered[ordered < params.min_p * ordered[0]] = 0
    if params.top_p is not None and params.top_p < 1:
        # The token that crosses the line still belongs to the nucleus.
        ordered[ordered.cumsum(-1) - ordered >= params.top_p * ordered.sum()] = 0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])


def penalize(logits: torch.Tensor, context: Sequence[int], penalty: float) -> torch.Tensor:
    """The scores [vocabulary], those of the context's tokens moved away from certainty."""
    said = torch.tensor(sorted(set(context)), device=logits.device)
    scores = logits[said]
    return logits.index_copy(
        0, said, torch.where(scores > 0, scores / penalty, scores * penalty).to(logits.dtype)
    )


def penalize_repeated(
    logits: torch.Tensor, reply: Sequence[int], params: GenerationParams
) -> torch.Tensor:
    """The scores [vocabulary], those of the reply's tokens lowered as OpenAI lowers them.

    https://platform.openai.com/docs/api-reference/chat/create
    """
    presence, frequency = params.presence_penalty or 0.0, params.frequency_penalty or 0.0
    counts = Counter(reply)
    return shift(logits, {token: -presence - frequency * count for token, count in counts.items()})


def check_biases(params: GenerationParams, vocabulary_size: int) -> None:
    """Raise `InvalidInput` for the bias of a token that the model does not have."""
    for token in params.logit_bias or ():
        if token >= vocabulary_size:
            raise InvalidInput(
                f"'logit_bias.{token}' is not supported: the model has {vocabulary_size} tokens.",
                param="logit_bias",
            )


def shift(logits: torch.Tensor, by: Mapping[int, float]) -> torch.Tensor:
    """The scores [vocabulary] with what is added to some of them, by token."""
    tokens = torch.tensor([*by], dtype=torch.long, device=logits.device)
    amounts = torch.tensor([*by.values()], dtype=logits.dtype, device=logits.device)
    return logits.index_add(0, tokens, amounts)


def create_generator(params: GenerationParams, device: torch.device) -> torch.Generator:
    """Give each turn its own random generator, so sampling does not depend on batch composition."""
    generator = torch.Generator(device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator
