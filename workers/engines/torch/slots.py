"""Continuous batching for any transformers model that keeps a KV cache.

Each turn has a slot, which is a row of the batch's KV cache (`kv_rows.py`). A step computes a
piece of a prompt that waits, or gives every running turn its next token, which after
`prefill_tokens` tokens of prompts they get first. Turns differ in length, sampling and seed.

Where slots or memory end, a turn is paused (`local/ranking.py`). It resumes later from its own
tokens, and its reader notices nothing but the pause.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from turnmill.schemas.errors import EngineBrokeOff, EngineFailure
from turnmill.schemas.turns import FinishReason
from turnmill.workers.engines.local.ranking import RANK, Line, Ranked, may_replace
from turnmill.workers.engines.local.scheduling import PREFILL_TOKENS, Generation, Token
from turnmill.workers.engines.torch.grammars import Grammars, Matcher
from turnmill.workers.engines.torch.kv_rows import KVRows, Masks, forward
from turnmill.workers.engines.torch.memory import Places, is_out_of_memory
from turnmill.workers.engines.torch.prefixes import MIN_TOKENS, PrefixStore, shared_length
from turnmill.workers.engines.torch.sampling import (
    Context,
    check_biases,
    create_generator,
    log_probabilities,
    next_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tokens that a turn can surely generate once it has joined.
HEADROOM = 32

#: How long a step waits for a format where no turn runs.
COMPILING_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    #: Turns in the batch.
    max_slots: int
    #: Tokens whose keys and values fit into memory, those of ended turns included.
    max_cached_tokens: int
    #: Prompt tokens computed between two steps of the running turns.
    prefill_tokens: int = PREFILL_TOKENS
    #: Whether the keys and values of ended turns are kept for those that begin alike.
    reuses_prefixes: bool = True


@dataclass(eq=False, slots=True)
class Slot(Ranked):
    """One turn in the batch, or on its way in."""

    generator: torch.Generator
    #: Of a reply with a format: which tokens may come next.
    matcher: Matcher | None = None
    #: The prompt and what was generated.
    tokens: list[int] = field(init=False)
    #: Tokens whose keys and values are in the row.
    computed: int = 0
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.generation.prompt_ids)


class SlotBatch:
    """The running turns and their KV cache. Row `i` of the cache belongs to slot `i`.

    All slots but the last run: their rows want for one token. The last one may still be
    `_joining`, that is computing its prompt.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        end_tokens: frozenset[int],
        limits: Limits,
        grammars: Grammars | None = None,
    ) -> None:
        """Without grammars no turn may have a format."""
        self._model = model
        self._end_tokens = end_tokens
        self._limits = limits
        self._masks = Masks(model)
        self._rows = KVRows(model.config.get_text_config().num_hidden_layers)
        self._store = PrefixStore()
        self._grammars = grammars
        #: Turns whose formats are compiled, with what that gives.
        self._compiling: list[tuple[Slot, Future[Matcher]]] = []
        self._waiting: Line[Slot] = Line()
        self._slots: list[Slot] = []
        self._joining: Slot | None = None
        #: Prompt tokens that may be computed before the running turns get their next token.
        self._prefill_budget = limits.prefill_tokens
        self._places = Places(limits.max_slots)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._slots or self._compiling)

    @property
    def generations(self) -> Sequence[Generation]:
        return [slot.generation for slot in self._all()]

    @property
    def held(self) -> Mapping[str, float]:
        """Turns, and rows of the cache that have memory."""
        return {"turns": len(self._all()), "rows": self._rows.row_count}

    @property
    def held_tokens(self) -> int:
        """Tokens whose keys and values are in memory."""
        return self._store.column_count + len(self._slots) * self._width()

    def admit(self, generation: Generation) -> None:
        check_biases(generation.params, self._model.config.get_text_config().vocab_size)
        generator = create_generator(generation.params, self._model.device)
        slot = Slot(generation, self._waiting.next_order(), generator)
        if generation.held_to is not None and self._grammars:
            compiled = self._grammars.compile(generation.held_to, generation.prefix)
            self._compiling.append((slot, compiled))
        else:
            self._waiting.add(slot)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        self._take_compiled()
        try:
            # One or the other: who waits for the first token of a prompt does not wait for the
            # others' next one.
            if self._prefill_budget <= 0 or not self._prefill():
                self._decode()
                self._prefill_budget = self._limits.prefill_tokens
            self._places.grow_back()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._make_do_with_less(error)
        if not self._slots:
            self._rows.release()

    # Joining and leaving

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def drop_unwanted(self) -> None:
        for slot in self._all():
            if slot.generation.is_unwanted:
                slot.generation.events.put(None)
                slot.is_finished = True
        self._compiling = [each for each in self._compiling if not each[0].is_finished]
        for slot in [slot for slot in self._waiting if slot.is_finished]:
            self._waiting.remove(slot)
        self._leave_finished()
        if not self._slots:
            self._rows.release()

    def _all(self) -> list[Slot]:
        return [*(slot for slot, _ in self._compiling), *self._waiting, *self._slots]

    def _take_compiled(self) -> None:
        """Let turns join whose formats are compiled. With no other turn, wait for one of them."""
        if self._compiling and not (self._waiting or self._slots):
            futures = [compiled for _, compiled in self._compiling]
            wait(futures, COMPILING_S, return_when="FIRST_COMPLETED")
        for slot, compiled in [each for each in self._compiling if each[1].done()]:
            self._compiling.remove((slot, compiled))
            try:
                slot.matcher = compiled.result()
            except EngineFailure as error:
                slot.generation.events.put(error)
            else:
                self._waiting.add(slot)

    def _leave_finished(self) -> None:
        for slot in [slot for slot in self._slots if slot.is_finished]:
            self._leave(slot)

    def _leave(self, slot: Slot, *, remembers: bool = True) -> None:
        """Free a row: cache its prefix, and close the gap with the last rows."""
        row = self._slots.index(slot)
        if remembers and self._limits.reuses_prefixes and slot.computed >= MIN_TOKENS:
            self._remember(row, slot)
        if slot is self._joining:
            self._joining = None
            self._slots.pop()
            return
        # The joining one stays behind those that run.
        last_running = len(self._slots) - (2 if self._joining else 1)
        for gap, filler in ((row, last_running), (last_running, len(self._slots) - 1)):
            if gap != filler:
                self._slots[gap] = self._slots[filler]
                self._rows.move(filler, gap, self._slots[gap].computed)
        self._slots.pop()

    def _remember(self, row: int, slot: Slot) -> None:
        most, tokens = self._limits.max_cached_tokens, slot.tokens[: slot.computed]
        namespace = slot.generation.namespace
        if self._store.longest(tokens, namespace)[1] == len(tokens):
            return
        # Nobody needs the memory of the only row any more: it is kept itself, not a copy.
        is_whole = len(self._slots) == self._rows.row_count == 1 and self._rows.column_count <= most
        try:
            if is_whole:
                self._make_room_to_go_on(slot)
                room = most - self._rows.column_count
            else:
                room = most - len(self._slots) * self._width() - len(tokens)
            if room < 0:
                return
            self._store.shrink_to(room)
            states = self._rows.detach() if is_whole else self._rows.copy_out(row, len(tokens))
            self._store.add(tokens, states, namespace)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._store.shrink_to(0)

    def _make_room_to_go_on(self, slot: Slot) -> None:
        """For as much as this turn has added to its conversation, now that nobody waits: when the
        next turn comes, its first token would wait for the row to be moved.
        """
        added = slot.computed - slot.generation.cached_tokens
        columns = slot.computed + added + HEADROOM
        if slot.generation.cached_tokens and 2 * columns <= self._limits.max_cached_tokens:
            self._rows.widen(columns)

    def _pause(self, slot: Slot, *, remembers: bool) -> None:
        self._leave(slot, remembers=remembers)
        slot.computed = 0
        self._waiting.add(slot)

    def _next_joining(self) -> Slot | None:
        """The slot whose prompt is computed next, with a row of its own; None: nobody fits."""
        while first := self._waiting.first:
            if self._joining is None and self._fits(first):
                self._waiting.remove(first)
                self._join(first)
                break
            rival = self._joining or max(self._slots, key=RANK)
            if may_replace(first, rival):
                self._pause(rival, remembers=True)
            else:
                break
        return self._joining

    def _fits(self, slot: Slot) -> bool:
        """With tokens to come for each: rows are as wide as the longest one."""
        width = max(self._width(), len(slot.tokens)) + HEADROOM
        rows = len(self._slots) + 1
        if rows > self._places.count:
            return False
        # Alone, a turn always fits: the context window is no larger than the cache.
        return rows == 1 or rows * width <= self._limits.max_cached_tokens

    def _join(self, slot: Slot) -> None:
        remembered, length = self._store.longest(slot.tokens, slot.generation.namespace)
        neighbour, shared = self._longest_running(slot)
        # At least one token is computed: its logits are the next token's.
        length, shared = min(length, len(slot.tokens) - 1), min(shared, len(slot.tokens) - 1)
        row, columns = len(self._slots), len(slot.tokens) + HEADROOM
        self._slots.append(slot)
        self._joining = slot
        self._reserve_memory()
        if remembered is not None and length >= max(shared, MIN_TOKENS):
            if row == 0 and length == len(remembered.tokens):
                self._rows.attach(self._store.take(remembered), columns)
            else:
                self._rows.copy_in(row, remembered.states, length, columns)
            slot.computed = length
        elif shared >= MIN_TOKENS:
            self._rows.copy_within(neighbour, row, shared, columns)
            slot.computed = shared
        if len(slot.tokens) == len(slot.generation.prompt_ids):
            slot.generation.cached_tokens = slot.computed

    def _longest_running(self, joining: Slot) -> tuple[int, int]:
        """The row of its namespace that begins like a slot for longest, and for how long."""
        if not self._limits.reuses_prefixes:
            return 0, 0
        lengths = [
            min(shared_length(slot.tokens, joining.tokens), slot.computed)
            if slot.generation.namespace == joining.generation.namespace
            else 0
            for slot in self._slots
        ]
        longest = max(lengths, default=0)
        return (lengths.index(longest), longest) if longest else (0, 0)

    # Computing

    def _prefill(self) -> bool:
        """Compute a piece of the prompt that is next; False if there is none."""
        while slot := self._next_joining():
            new = slot.tokens[slot.computed :][: self._prefill_budget]
            try:
                logits = self._forward([new], [slot])
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Should the device itself be broken, the next step finds out.
                failure = EngineFailure(f"The engine cannot compute the prompt: {error}")
                self._leave(slot, remembers=False)
                slot.generation.events.put(failure)
                continue
            self._prefill_budget -= len(new)
            if slot.computed == len(slot.tokens):
                self._joining = None
                self._take_tokens([slot], logits)
            return True
        return False

    def _decode(self) -> None:
        if not self._reserve_memory():
            return
        running = self._slots[:-1] if self._joining else self._slots
        if running:
            logits = self._forward([slot.tokens[-1:] for slot in running], running)
            self._take_tokens(running, logits)

    def _forward(self, new: list[list[int]], slots: list[Slot]) -> torch.Tensor:
        """Run one forward pass over the slots' new tokens, the same number for each. Return the
        logits of each slot's last one, [slots, vocabulary].
        """
        row = self._slots.index(slots[0])
        starts = [slot.computed for slot in slots]
        logits = forward(self._model, self._rows, self._masks, row, new, starts)
        for slot in slots:
            slot.computed += len(new[0])
        return logits

    def _take_tokens(self, slots: list[Slot], logits: torch.Tensor) -> None:
        params = [slot.generation.params for slot in slots]
        generators = [slot.generator for slot in slots]
        matchers = [slot.matcher for slot in slots]
        contexts = [Context(slot.tokens, len(slot.generation.prompt_ids)) for slot in slots]
        # Of the model itself, whatever the turn does to its scores.
        told = log_probabilities(logits, params)
        tokens = next_tokens(logits, params, generators, contexts, matchers)
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            failure = slot.matcher.failure if slot.matcher else None
            if failure is not None:
                slot.is_finished = True
                slot.generation.events.put(failure)
                continue
            slot.tokens.append(token)
            reason: FinishReason | None = None
            if token in self._end_tokens:
                reason = "stop"
            elif len(slot.tokens) == len(slot.generation.prompt_ids) + slot.generation.limit:
                reason = "length"
            slot.is_finished = reason is not None
            logprobs = told[row].of(token) if row in told else ()
            slot.generation.events.put(Token(token, reason, logprobs))
        self._leave_finished()

    # Memory

    def _width(self) -> int:
        return max((len(slot.tokens) for slot in self._slots), default=0)

    def _reserve_memory(self) -> bool:
        """Make room for the rows: evict cached prefixes first, then pause running turns."""
        most = self._limits.max_cached_tokens
        while len(self._slots) > 1 and len(self._slots) * self._width() > most:
            self._pause(max(self._slots, key=RANK), remembers=False)
        self._store.shrink_to(most - len(self._slots) * self._width())
        return bool(self._slots)

    def _make_do_with_less(self, error: Exception) -> None:
        """Memory ran out: run fewer turns at once from now on, and drop all cached prefixes."""
        self._store.shrink_to(0)
        newest = max(self._slots, key=RANK)
        if len(self._slots) == 1:
            self._leave(newest, remembers=False)
            newest.generation.events.put(
                EngineBrokeOff("The engine ran out of memory while this turn ran alone.")
            )
        else:
            self._pause(newest, remembers=False)
            self._places.count = len(self._slots)
        self._places.note_shortage(error)
