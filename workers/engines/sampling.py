"""The next token of each turn of a batch."""

from collections.abc import Sequence
from typing import Any

import torch

from turnmill.schemas.turns import GenerationParams


def next_tokens(
    logits: Any, params: Sequence[GenerationParams], generators: Sequence[Any]
) -> list[int]:
    """One token a row of `logits` [turns, vocabulary]: the likeliest, or drawn at random."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (each, generator) in enumerate(zip(params, generators, strict=True)):
        if each.temperature:
            tokens[row] = sample(logits[row].float(), each, generator)
    return tokens


def sample(logits: Any, params: GenerationParams, generator: Any) -> int:
    """A token drawn at `temperature` from the nucleus of `top_p` (arXiv 1904.09751)."""
    probabilities = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_p is not None and params.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # The token that crosses the line still belongs to the nucleus.
        ordered[ordered.cumsum(-1) - ordered >= params.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def create_generator(params: GenerationParams, device: Any) -> Any:
    """Each turn has its own, so that its neighbours do not shift its choices."""
    generator = torch.Generator(device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator
