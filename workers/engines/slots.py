"""Continuous batching for any transformers model that keeps a KV cache.

Each turn has a slot: one row of a batched cache, padded on the left to the longest row. A new
turn's prompt is computed alone, exactly as `model.generate` would, and then joins the batch,
where a step gives every slot its next token. Slots differ in length, sampling and seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from turnmill.schemas.errors import EngineFailure, EngineUnavailable
from turnmill.schemas.turns import FinishReason, GenerationParams
from turnmill.workers.engines.batching import Generation, Token


@dataclass(eq=False, slots=True)
class Slot:
    """One turn in the batch."""

    generation: Generation
    #: For sampling; each turn has its own, so that its neighbours do not shift its choices.
    generator: Any
    #: The token that the next step feeds to the model.
    last_token: int = -1
    #: Tokens the model has seen, which is also the position of `last_token`.
    length: int = 0
    generated: int = 0
    is_finished: bool = False


class SlotBatch:
    """The turns in work and their KV cache. Row `i` of the cache belongs to slot `i`."""

    def __init__(
        self, model: Any, end_tokens: frozenset[int], max_slots: int, max_cached_tokens: int
    ) -> None:
        self._model = model
        self._end_tokens = end_tokens
        self._max_slots = max_slots
        self._max_cached_tokens = max_cached_tokens
        self._waiting: list[Generation] = []
        self._slots: list[Slot] = []
        self._cache = DynamicCache()

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._slots)

    @property
    def generations(self) -> Sequence[Generation]:
        return [*self._waiting, *(slot.generation for slot in self._slots)]

    def admit(self, generation: Generation) -> None:
        self._waiting.append(generation)

    def step(self) -> None:
        with torch.inference_mode():
            self._drop_unwanted()
            # One new turn a step: those at work wait for one prompt at most.
            if self._waiting and self._has_room_for(self._waiting[0]):
                self._join(self._waiting.pop(0))
            if self._slots:
                self._decode()

    def _drop_unwanted(self) -> None:
        for generation in self.generations:
            if generation.is_unwanted:
                generation.events.put(None)
        self._waiting = [each for each in self._waiting if not each.is_unwanted]
        self._keep(lambda slot: not slot.generation.is_unwanted)

    def _has_room_for(self, generation: Generation) -> bool:
        """Rows are padded to the longest one, so the cache is rows times the longest."""
        if not self._slots:
            return True
        longest = max(
            len(each.prompt_ids) + each.limit
            for each in [generation, *(slot.generation for slot in self._slots)]
        )
        rows = len(self._slots) + 1
        return rows <= self._max_slots and rows * longest <= self._max_cached_tokens

    def _join(self, generation: Generation) -> None:
        """Compute the prompt and its first token; what goes wrong here concerns this turn only."""
        slot = Slot(generation, _generator(generation.params, self._model.device))
        cache = DynamicCache()
        try:
            ids = torch.tensor([generation.prompt_ids], device=self._model.device)
            output = self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            slot.length = len(generation.prompt_ids)
            self._take_tokens([slot], output.logits[:, -1])
            if not slot.is_finished:
                self._cache = _stacked(self._cache, cache) if self._slots else cache
                self._slots.append(slot)
        except Exception as error:
            # Should the device itself be broken, the next step finds out.
            no_memory = is_out_of_memory(error)
            failure = f"The engine cannot compute the prompt: {error}"
            generation.events.put(_no_memory() if no_memory else EngineFailure(failure))

    def _decode(self) -> None:
        width = self._cache.get_seq_length()
        try:
            output = self._model(**self._inputs(width), past_key_values=self._cache)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._give_up_newest(width)
            return
        for slot in self._slots:
            slot.length += 1
        self._take_tokens(self._slots, output.logits[:, -1])
        self._keep(lambda slot: not slot.is_finished)

    def _inputs(self, width: int) -> dict[str, Any]:
        device = self._model.device
        lengths = torch.tensor([slot.length for slot in self._slots], device=device)
        columns = torch.arange(width + 1, device=device)
        return {
            "input_ids": torch.tensor([[slot.last_token] for slot in self._slots], device=device),
            "position_ids": lengths[:, None],
            "attention_mask": (columns >= width - lengths[:, None]).long(),
        }

    def _take_tokens(self, slots: list[Slot], logits: Any) -> None:
        for slot, row in zip(slots, logits.float(), strict=True):
            token = sample(row, slot.generation.params, slot.generator)
            slot.last_token = token
            slot.generated += 1
            reason: FinishReason | None = None
            if token in self._end_tokens:
                reason = "stop"
            elif slot.generated == slot.generation.limit:
                reason = "length"
            slot.is_finished = reason is not None
            slot.generation.events.put(Token(token, reason))

    def _give_up_newest(self, width: int) -> None:
        """Memory ran out within a step: some layers have taken it in, some have not."""
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[..., :width, :], layer.values[..., :width, :]
        newest = self._slots[-1]
        newest.generation.events.put(_no_memory())
        self._keep(lambda slot: slot is not newest)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _keep(self, wanted: Callable[[Slot], bool]) -> None:
        """Drop the other rows, and the padding that only they needed."""
        rows = [row for row, slot in enumerate(self._slots) if wanted(slot)]
        if len(rows) == len(self._slots):
            return
        self._slots = [self._slots[row] for row in rows]
        if not rows:
            self._cache = DynamicCache()
            return
        padding = self._cache.get_seq_length() - max(slot.length for slot in self._slots)
        index = torch.tensor(rows, device=self._model.device)
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, padding:]
            layer.values = layer.values[index, :, padding:]


def sample(logits: Any, params: GenerationParams, generator: Any) -> int:
    """The next token: the likeliest at temperature 0, else drawn from the nucleus of `top_p`."""
    if not params.temperature:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_p is not None and params.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # The token that crosses the line still belongs to the nucleus.
        ordered[ordered.cumsum(-1) - ordered >= params.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def is_out_of_memory(error: BaseException) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _no_memory() -> EngineUnavailable:
    return EngineUnavailable("The engine is out of memory; try again.")


def _generator(params: GenerationParams, device: Any) -> Any:
    generator = torch.Generator(device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator


def _stacked(upper: Any, lower: Any) -> Any:
    """The rows of both caches, padded on the left to the same width."""
    width = max(upper.get_seq_length(), lower.get_seq_length())
    pairs = zip(upper.layers, lower.layers, strict=True)
    # All or nothing: when memory runs out here, the batch stays as it was.
    stacked = DynamicCache()
    for index, (above, below) in enumerate(pairs):
        keys = torch.cat([_padded(above.keys, width), _padded(below.keys, width)])
        values = torch.cat([_padded(above.values, width), _padded(below.values, width)])
        stacked.update(keys, values, index)
    return stacked


def _padded(states: Any, width: int) -> Any:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
