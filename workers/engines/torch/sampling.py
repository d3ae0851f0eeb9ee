"""The next token of each turn of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.torch.grammars import Matcher


def next_tokens(
    logits: Any,
    params: Sequence[GenerationParams],
    generators: Sequence[Any],
    contexts: Sequence[Sequence[int]],
    matchers: Sequence[Matcher | None],
) -> list[int]:
    """Choose one token for each row of `logits` [turns, vocabulary]: the likeliest, or one drawn
    at random. `contexts` holds the tokens of each turn's prompt and reply; a matcher says which
    ones may be chosen, and is told which one was.
    """
    for row, (each, context) in enumerate(zip(params, contexts, strict=True)):
        if each.repetition_penalty not in (None, 1):
            logits[row] = penalize(logits[row], context, each.repetition_penalty)
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


def sample(logits: Any, params: GenerationParams, generator: Any) -> int:
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


def penalize(logits: Any, context: Sequence[int], penalty: float) -> Any:
    """The scores [vocabulary], those of the context's tokens moved away from certainty."""
    said = torch.tensor(sorted(set(context)), device=logits.device)
    scores = logits[said]
    return logits.index_copy(
        0, said, torch.where(scores > 0, scores / penalty, scores * penalty).to(logits.dtype)
    )


def create_generator(params: GenerationParams, device: Any) -> Any:
    """Give each turn its own random generator, so sampling does not depend on batch composition."""
    generator = torch.Generator(device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator
