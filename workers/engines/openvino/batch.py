"""The turns in OpenVINO GenAI's continuous batching pipeline."""

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, InvalidInput
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.local.blocks import BlockRecord
from turnmill.workers.engines.local.ranking import RANK, Line, may_replace
from turnmill.workers.engines.local.scheduling import Generation
from turnmill.workers.engines.openvino.namespaces import Namespaces
from turnmill.workers.engines.openvino.requests import (
    Request,
    new_tokens,
    piece_config,
    sampling_config,
    tensor,
)
from turnmill.workers.vendor.openvino import openvino_genai

STATUS = openvino_genai.GenerationStatus

#: So long after an interactive turn came, more of them are expected, seconds.
EXPECTED_S = 10.0
#: Meanwhile the batch lane gets all slots but one in so many, and a step computes little more of
#: its prompts than would cost the same as turns in its free slots: an interactive turn waits for
#: the end of a step.
RESERVED_SHARE = 3

#: What a running turn costs a step on a CPU, in tokens of a prompt (measured: 2).
TURN_COSTS = 2

#: Batch turns that compute their prompts at once: the next one fills what the first one leaves.
MOST_IN_PROMPT = 2

#: Batch turns leave a step out only while no more of the KV cache is in use, percent: they hold
#: their blocks until that step ends, and the pipeline fails every turn if it has none for any.
MOST_CACHE_USED = 80.0


class OpenVINOBatch:
    """The turns in a continuous batching pipeline.

    On a CPU each running turn costs a step as much as a token of a prompt does, so an interactive
    turn gets its first token from a step without the batch lane. No two steps in a row leave the
    batch lane out. The pipeline cannot leave a turn out of a step; the turn is taken out of the
    pipeline instead and put back for the next step, with what it has generated as the end of its
    prompt. All but its last token is in the prefix cache. A turn that is paused (`ranking.py`)
    comes back in the same way.

    A prompt that the pipeline has begun is computed to its end, even if nobody waits for it any
    more. Where prefixes are kept, the pipeline knows a block by all tokens that it is to hold as
    soon as it is allocated (`BlockManager::allocate` in
    https://github.com/openvinotoolkit/openvino.genai/blob/2026.3.0.0/src/cpp/src/continuous_batching/cache/block_manager.hpp):
    a turn that left in the middle of a block would leave it as whole, and the next prompt that
    begins the same would be answered from what is missing there. Prompts of the batch lane are
    given in pieces of whole blocks that one step computes, or an interactive turn would wait for
    the end of a long one.
    """

    def __init__(
        self,
        pipeline: openvino_genai.ContinuousBatchingPipeline,
        max_slots: int,
        step_tokens: int,
        blocks: BlockRecord,
        namespaces: Namespaces | None = None,
    ) -> None:
        """`step_tokens`: what the pipeline computes in a step, at most. `namespaces`: None where
        no prefixes are kept.
        """
        self._pipeline = pipeline
        self._max_slots = max_slots
        self._step_tokens = step_tokens
        self._blocks = blocks
        self._namespaces = namespaces
        self._defaults = pipeline.get_config()
        self._waiting: Line[Request] = Line()
        #: Those that have a slot, in the pipeline's order.
        self._running: list[Request] = []
        #: Unwanted ones in the middle of their prompts.
        self._leaving: list[Request] = []
        #: Turns of the batch lane that the last step left out.
        self._left_out: Sequence[Request] = ()
        self._last_interactive_at = float("-inf")
        # Never the turn's own id: the same turn may come again while it is still here.
        self._ids = itertools.count()

    @property
    def is_busy(self) -> bool:
        open_turns = self._waiting or self._running or self._leaving
        return bool(open_turns or self._pipeline.has_non_finished_requests())

    @property
    def held(self) -> Mapping[str, float]:
        turns = len(self._waiting) + len(self._running) + len(self._leaving)
        return {"turns": turns, "pipeline": self._pipeline.has_non_finished_requests()}

    def admit(self, generation: Generation) -> None:
        if generation.namespace and self._namespaces and _penalizes(generation.params):
            raise InvalidInput(
                "'repetition_penalty' is not supported by this model: OpenVINO cannot penalize "
                "tokens while it keeps the prompts of several tenants apart. Leave it out.",
                param="repetition_penalty",
            )
        request = Request(generation, self._waiting.next_order())
        if request.is_interactive:
            self._last_interactive_at = time.monotonic()
        self._waiting.add(request)

    def step(self) -> None:
        self._join_waiting()
        self._left_out = self._to_leave_out()
        self._exchange()
        self._pipeline.step()
        self._count_computed()
        for request in [each for each in self._running if each.handle is not None]:
            self._pass_on(request)
        for request in list(self._leaving):
            self._let_go(request)

    def drop_unwanted(self) -> None:
        for request in [each for each in self._running if each.generation.is_unwanted]:
            self._running.remove(request)
            if self._may_leave(request):
                self._take_out(request)
            else:
                self._leaving.append(request)
            request.generation.events.put(None)
        for request in [each for each in self._waiting if each.generation.is_unwanted]:
            self._waiting.remove(request)
            request.generation.events.put(None)

    # Slots

    def _join_waiting(self) -> None:
        """Give slots to all interactive turns that fit, and to one of the batch lane; where no step
        leaves that lane out, to one or the other.
        """
        has_joined = False
        while first := self._waiting.first:
            if not first.is_interactive and (has_joined or not self._has_batch_room()):
                return
            if len(self._leaving) >= self._max_slots:
                return
            if len(self._running) >= self._max_slots:
                last = max(filter(self._may_pause, self._running), key=RANK, default=None)
                if last is None or not may_replace(first, last):
                    return
                self._running.remove(last)
                self._take_out(last)
                self._waiting.add(last)
            self._waiting.remove(first)
            self._join(first)
            has_joined = not first.is_interactive or self._namespaces is None

    def _expects_interactive(self) -> bool:
        return time.monotonic() - self._last_interactive_at < EXPECTED_S

    def _batch_slots(self) -> int:
        reserved = self._max_slots // RESERVED_SHARE if self._expects_interactive() else 0
        return self._max_slots - reserved

    def _has_batch_room(self) -> bool:
        batch = [each for each in self._running if not each.is_interactive]
        beginning = sum(each.is_in_prompt for each in batch)
        return len(batch) < self._batch_slots() and beginning < MOST_IN_PROMPT

    def _join(self, request: Request) -> None:
        ids = self._ids_of(request)
        known = self._blocks.known_tokens(ids)
        if not request.tokens:
            request.generation.cached_tokens = known
        request.left = len(ids) - known
        request.prompt = hash((request.generation.namespace, *request.generation.prompt_ids))
        request.is_in_prompt = True
        self._running.append(request)

    # The pipeline's requests

    def _to_leave_out(self) -> Sequence[Request]:
        """The turns of the batch lane, if interactive ones wait for their first tokens."""
        prompts = [each for each in self._running if each.is_interactive and each.is_in_prompt]
        if self._left_out or not prompts or not self._namespaces:
            return ()
        if self._pipeline.get_metrics().cache_usage > MOST_CACHE_USED:
            return ()
        batch = [each for each in self._running if not each.is_interactive]
        alike = Counter(each.prompt for each in batch)
        leaving = [each for each in batch if self._may_be_left_out(each, alike)]
        tokens = sum(each.left for each in self._running if each not in leaving)
        # What this step leaves of their prompts comes before the tokens of turns that are put back.
        rest = max(0, tokens - self._step_tokens)
        return leaving if rest + len(self._running) <= self._step_tokens else ()

    def _may_be_left_out(self, request: Request, alike: Mapping[int, int]) -> bool:
        """Turns with the same prompt would have to be put back one by one (`_give`)."""
        if request.handle is None:
            return True
        is_alone = alike[request.prompt] == 1
        return is_alone and self._may_pause(request) and not request.draws_from_seed

    def _exchange(self) -> None:
        """Take out of the pipeline what is not to be computed, and give it what is."""
        room = self._prompt_room()
        ends = {each.end for each in (*self._running, *self._leaving) if each.end is not None}
        for request in list(self._running):
            if request in self._left_out:
                self._take_out(request)
            elif request.handle is None:
                try:
                    room -= self._give(request, room, ends)
                except Exception as error:
                    self._running.remove(request)
                    failure = EngineFailure(f"The engine refuses the turn: {error}")
                    request.generation.events.put(failure)

    def _prompt_room(self) -> int:
        """Tokens of the batch lane's prompts for one step, in whole blocks."""
        if not self._namespaces:
            return self._step_tokens
        room = self._step_tokens - self._max_slots
        if self._expects_interactive():
            going_on = sum(not each.is_in_prompt for each in self._running)
            room = min(room, TURN_COSTS * max(0, self._batch_slots() - going_on))
        return max(self._blocks.block_size, room)

    def _give(self, request: Request, room: int, ends: set[int]) -> int:
        """Give a turn to the pipeline, or a piece of its prompt. Return what that takes of `room`.

        The turn waits for another step if two would continue one text in the middle of a block:
        the pipeline, where it computes both in one step, writes both into that block.
        """
        ids, size = self._ids_of(request), request.left
        is_batch_prompt = request.is_in_prompt and not request.is_interactive
        is_piece = is_batch_prompt and self._namespaces is not None and size > room
        if is_piece:
            size = room - room % self._blocks.block_size
            ids = ids[: len(ids) - request.left + size]
        end = self._blocks.open_end(ids)
        if size == 0 or end in ends:
            return 0
        config = piece_config()
        if not is_piece:
            config = sampling_config(request.generation, len(request.tokens), self._defaults)
        request.handle = self._pipeline.add_request(next(self._ids), tensor(ids), config)
        request.ids, request.is_piece, request.end = ids, is_piece, end
        if end is not None:
            ends.add(end)
        return size if is_batch_prompt else 0

    def _take_out(self, request: Request) -> None:
        """Cancel a turn in the pipeline that may come back."""
        if request.handle is not None:
            request.handle.cancel()
            self._remember(request)
            request.handle = request.end = None

    def _remember(self, request: Request) -> None:
        """Record what is in the cache; the last token was never fed back."""
        if request.tokens and not request.is_in_prompt:
            self._blocks.add(self._ids_of(request)[:-1])

    def _count_computed(self) -> None:
        """Prompts come after the next tokens of running turns, in their order."""
        computed_turns = [each for each in self._running if each.handle is not None]
        room = self._step_tokens - sum(not each.is_in_prompt for each in computed_turns)
        for request in computed_turns:
            if request.is_in_prompt and request.is_interactive:
                computed = min(room, request.left - 1)
                room -= computed
                request.left -= computed

    def _pass_on(self, request: Request) -> None:
        generation = request.generation
        if request.is_piece and request.handle.can_read():
            self._blocks.add(request.ids)
            request.left = len(self._ids_of(request)) - len(request.ids)
            request.handle = request.end = None
            return
        for token in new_tokens(request.handle):
            if not request.tokens:
                self._blocks.add(request.ids, ends_here=False)
            request.is_in_prompt, request.left, request.end = False, 1, None
            request.tokens.append(token.id)
            generation.events.put(token)
            if token.finish_reason:
                self._running.remove(request)
                self._remember(request)
                return
        if request.handle.get_status() != STATUS.RUNNING:
            self._running.remove(request)
            self._remember(request)
            generation.events.put(EngineBrokeOff("The engine's KV cache is full."))

    def _may_leave(self, request: Request) -> bool:
        is_begun = request.handle is not None and request.is_in_prompt
        return not (is_begun and self._namespaces)

    def _may_pause(self, request: Request) -> bool:
        """A grammar begins at the first new token, and penalties are for tokens since then: such
        a reply runs to its end.
        """
        wants_all = request.generation.held_to or request.generation.params.penalizes_replies
        return self._may_leave(request) and not wants_all

    def _let_go(self, request: Request) -> None:
        """Cancel a turn that is unwanted if its prompt has come to its end."""
        has_token = request.handle.can_read()
        if has_token:
            self._blocks.add(request.ids)
        if has_token or request.handle.get_status() != STATUS.RUNNING:
            self._leaving.remove(request)
            request.handle.cancel()

    def _ids_of(self, request: Request) -> list[int]:
        """Its prompt and what was generated, as the cache is to know them."""
        ids = [*request.generation.prompt_ids, *request.tokens]
        return self._namespaces.ids(ids, request.generation.namespace) if self._namespaces else ids


def _penalizes(params: GenerationParams) -> bool:
    return "repetition_penalty" in params.sampling
