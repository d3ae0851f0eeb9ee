"""vLLM's asynchronous front end on a thread of its own.

Many threads submit turns; the thread's event loop hands them to vLLM at once, even while a
long prompt is computed, and every token back to the thread that waits for it. When vLLM's
processes die, every waiting turn fails and the engine takes no new one.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from threading import Lock, Thread
from typing import TYPE_CHECKING

import llguidance.hf
import structlog

from turnmill.schemas.capabilities import ALL_FORMATS, ALL_PENALTIES
from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineDied,
    EngineFailure,
    EngineUnavailable,
    TurnmillError,
)
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import Lane
from turnmill.workers.engines.local.guidance import special_tokens
from turnmill.workers.engines.local.scheduling import Facts, Generation, Token
from turnmill.workers.engines.text.call_form import CallForm
from turnmill.workers.engines.vllm.eyes import VLLMEyes
from turnmill.workers.engines.vllm.formats import structured_fields
from turnmill.workers.engines.vllm.plugin import dying_with_this_process
from turnmill.workers.vendor.vllm import silence_end, unfinished_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm.logprobs import Logprob
    from vllm.outputs import RequestOutput
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs import EngineInput, tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

log = structlog.get_logger(__name__)

#: vLLM takes the lowest number first, and gives up the highest when the KV cache is full.
PRIORITIES = {Lane.INTERACTIVE: 0}
LAST = 1

#: One slot in so many is kept free of the batch lane.
RESERVED_SHARE = 8

#: How often a look tells whether vLLM is still alive.
LOOK_S = 0.1

#: How long its processes may take to end by themselves.
SHUTDOWN_S = 1.0


class VLLMFront:
    """The turns in vLLM.

    Raises:
        Exception: what vLLM raises when it cannot load the model.
    """

    def __init__(self, arguments: AsyncEngineArgs, slots: int, image_pixels: int) -> None:
        self._tasks: dict[Generation, asyncio.Task[None]] = {}
        # Never the turn's own id: the same turn may come again while it is still here.
        self._ids = itertools.count()
        self._batch_room = asyncio.Semaphore(max(1, slots - max(1, slots // RESERVED_SHARE)))
        self._lock = Lock()
        #: What is raised when no more turns are taken.
        self._refusal: type[EngineUnavailable] | None = None
        self._is_closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._started: Future[AsyncLLM] = Future()
        self._thread = Thread(target=self._run, args=(arguments,), name="vllm-front", daemon=True)
        self._thread.start()
        self._llm = self._started.result()
        self._special = _special(self._llm.renderer.tokenizer)
        eyes = VLLMEyes(self._llm, image_pixels)
        self._eyes = eyes if eyes.limit else None

    @property
    def facts(self) -> Facts:
        config = self._llm.model_config
        return Facts(
            context_window=config.max_model_len,
            vocabulary_size=config.get_vocab_size(),
            device=current_platform.device_type,
            dtype=str(config.dtype).removeprefix("torch."),
            formats=frozenset({"text"}) if self._special is None else ALL_FORMATS,
            # Its llguidance has limits that nothing here can raise.
            wide_formats=False,
            logprobs=True,
            penalties=ALL_PENALTIES,
            eyes=self._eyes,
        )

    @property
    def held(self) -> Mapping[str, float]:
        requests = unfinished_count(self._llm)
        return {"turns": len(self._tasks), "requests": requests}

    def check(self) -> None:
        if self._refusal:
            raise self._refusal()

    def submit(self, generation: Generation) -> None:
        # Here, on the turn's own thread: a large schema takes a while to read.
        sampling = _sampling(generation, self._special or {})
        with self._lock:
            if self._refusal:
                raise EngineAway
            self._loop.call_soon_threadsafe(self._begin, generation, sampling)

    def give_up(self, generation: Generation) -> None:
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._cancel, generation)

    def close(self) -> None:
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._is_closing.set)
        self._thread.join()

    def _run(self, arguments: AsyncEngineArgs) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(arguments))

    async def _serve(self, arguments: AsyncEngineArgs) -> None:
        try:
            with dying_with_this_process():
                self._llm = AsyncLLM.from_engine_args(arguments)
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(self._llm)
        try:
            while not self._is_closing.is_set():
                self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_closing.wait(), LOOK_S)
        finally:
            self._end(EngineAway)
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            silence_end(self._llm)
            await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_S)

    def _cancel(self, generation: Generation) -> None:
        if task := self._tasks.get(generation):
            task.cancel()

    def _look(self) -> None:
        if self._llm.errored and not self._refusal:
            log.error("engine.died")
            self._end(EngineDied)

    def _end(self, refusal: type[EngineUnavailable]) -> None:
        """Refuse new turns, and fail those that wait."""
        with self._lock:
            self._refusal = refusal
        for generation, task in self._tasks.items():
            generation.events.put(refusal())
            task.cancel()

    def _begin(self, generation: Generation, sampling: SamplingParams) -> None:
        if self._refusal:
            generation.events.put(EngineAway())
            return
        task = self._loop.create_task(self._generate(generation, sampling))
        self._tasks[generation] = task
        task.add_done_callback(lambda _: self._tasks.pop(generation, None))

    async def _generate(self, generation: Generation, sampling: SamplingParams) -> None:
        end: TurnmillError | None = None
        try:
            async with AsyncExitStack() as stack:
                if generation.lane is not Lane.INTERACTIVE:
                    await stack.enter_async_context(self._batch_room)
                await self._pass_on(generation, sampling)
        except VLLMClientError as error:
            end = _refused(error)
        except EngineDeadError:
            self._look()  # at once: whoever hears of it may ask the next turn
            end = EngineDied()
        except TurnmillError as error:
            end = error
        except Exception as error:
            end = EngineUnavailable(f"vLLM gave the turn up: {error}")
        finally:
            generation.events.put(end)

    async def _pass_on(self, generation: Generation, sampling: SamplingParams) -> None:
        outputs = self._llm.generate(
            _inputs(generation),
            sampling,
            f"turn-{next(self._ids)}",
            priority=PRIORITIES.get(generation.lane, LAST),
        )
        async with aclosing(outputs):
            async for output in outputs:
                generation.cached_tokens = output.num_cached_tokens or 0
                for token in _new_tokens(output):
                    generation.events.put(token)


def _inputs(generation: Generation) -> EngineInput:
    """The prompt. Its images are vLLM's from now on: a generation would hold them to its end."""
    seen, generation.inputs = generation.inputs, None
    if seen is not None:
        inputs: EngineInput = seen
        return inputs
    return tokens_input(generation.prompt_ids, cache_salt=generation.namespace or None)


def _sampling(generation: Generation, special: Mapping[str, int]) -> SamplingParams:
    params = generation.params
    try:
        return SamplingParams(
            temperature=params.temperature or 0.0,
            top_p=params.top_p or 1.0,
            top_k=params.top_k or 0,
            min_p=params.min_p or 0.0,
            repetition_penalty=params.repetition_penalty or 1.0,
            frequency_penalty=params.frequency_penalty or 0.0,
            presence_penalty=params.presence_penalty or 0.0,
            seed=params.seed,
            logprobs=params.logprobs,
            structured_outputs=_structured(generation.held_to, special),
            max_tokens=generation.limit,
            # Tokens become text on the thread that waits for them.
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
    except VLLMClientError as error:
        raise _refused(error) from error


def _refused(error: VLLMClientError) -> EngineFailure:
    return EngineFailure(f"The engine refuses the turn: {error}")


def _structured(
    held_to: ResponseFormat | CallForm | None, special: Mapping[str, int]
) -> StructuredOutputsParams | None:
    if held_to is None:
        return None
    return StructuredOutputsParams(**structured_fields(held_to, special))


def _new_tokens(output: "RequestOutput") -> Iterator[Token]:
    """The tokens since the last output; several, where this thread was slower than the model."""
    [completion] = output.outputs
    reason = completion.finish_reason
    if reason not in (None, "stop", "length"):
        raise EngineBrokeOff(f"vLLM gave the turn up: {reason}")
    likely = completion.logprobs or itertools.repeat({})
    tokens = [
        Token(id, logprobs=_logprobs(id, each))
        for id, each in zip(completion.token_ids, likely, strict=False)
    ]
    yield from tokens[:-1]
    yield from (replace(token, finish_reason=reason) for token in tokens[-1:])


def _logprobs(token: int, likely: "Mapping[int, Logprob]") -> tuple[tuple[int, float], ...]:
    """As `Token.logprobs`."""
    if not likely:
        return ()
    by_rank = sorted(likely.items(), key=lambda each: each[1].rank)
    top = ((id, each.logprob) for id, each in by_rank)
    return ((token, likely[token].logprob), *top)


def _special(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int] | None:
    """As `special_tokens`; None where llguidance cannot read the vocabulary: replies are text."""
    try:
        return special_tokens(tokenizer, llguidance.hf.from_tokenizer(tokenizer))
    except ValueError as error:
        log.warning("engine.no_formats", reason=str(error))
        return None
