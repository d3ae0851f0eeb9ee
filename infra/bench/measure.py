"""What one engine does with a workload, measured in a process of its own."""

import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from turnmill.infra.bench.aborts import AbortTime, abort_many
from turnmill.infra.bench.workload import Chat, conversation, short_chats
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import Lane, Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

#: Turns that keep the batch lane busy while an interactive one is timed.
PROBES = 60

#: Seconds in which no turn joins a full batch lane, and in which the first ones do.
STEADY_S, JOINING_S = 2.0, 120.0


@dataclass(slots=True)
class Run:
    """One workload on one engine; times in seconds."""

    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    took_s: float = 0.0
    #: Chats answered; fewer than asked where a peer was stopped after its time.
    chats: int = 0
    first_token_s: list[float] = field(default_factory=list)
    between_tokens_s: list[float] = field(default_factory=list)
    #: Of the process with the model, MiB.
    peak_mib: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.took_s


@dataclass(slots=True)
class Answer:
    """One turn as its reader saw it."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)


def answer(
    engine: Engine, prompt: Prompt, chat: Chat, has_begun: threading.Event | None = None
) -> Answer:
    """Ask, and read to the end; `has_begun` is set at the first token."""
    result, started_at = Answer(), time.perf_counter()
    last_at = started_at
    for chunk in engine.generate(prompt, chat.params, Abort()):
        now = time.perf_counter()
        if not result.tokens:
            result.first_token_s = now - started_at
            if has_begun:
                has_begun.set()
        elif chunk.token_count:
            result.gaps_s.append((now - last_at) / chunk.token_count)
        last_at = now
        result.text += chunk.text
        result.tokens += chunk.token_count
        result.prompt_tokens = chunk.prompt_tokens
        result.cached_tokens = chunk.cached_tokens
    return result


def offline(settings: EngineSettings, chats: Sequence[Chat], warm_up: Sequence[Chat]) -> Run:
    """All chats at once, each from a thread of its own as in a worker."""
    with _running(settings) as engine:
        _all_at_once(engine, warm_up)
        started_at = time.perf_counter()
        answers = _all_at_once(engine, chats)
        run = summary(answers, time.perf_counter() - started_at)
    run.peak_mib = peak_mib()
    return run


def merged(runs: Sequence[Run]) -> Run:
    """All of them, one after the other."""
    return Run(
        tokens=sum(run.tokens for run in runs),
        prompt_tokens=sum(run.prompt_tokens for run in runs),
        cached_tokens=sum(run.cached_tokens for run in runs),
        took_s=sum(run.took_s for run in runs),
        chats=sum(run.chats for run in runs),
        first_token_s=[each for run in runs for each in run.first_token_s],
        between_tokens_s=[each for run in runs for each in run.between_tokens_s],
        peak_mib=max(run.peak_mib for run in runs),
    )


def summary(answers: Iterable[Answer], took_s: float) -> Run:
    run = Run(took_s=took_s)
    for each in answers:
        run.chats += 1
        run.tokens += each.tokens
        run.prompt_tokens += each.prompt_tokens
        run.cached_tokens += each.cached_tokens
        run.first_token_s.append(each.first_token_s)
        run.between_tokens_s.extend(each.gaps_s)
    return run


def talk(settings: EngineSettings, turns: int, rounds: int) -> tuple[list[float], list[int]]:
    """A conversation turn by turn: the median time to each turn's first token over some
    conversations, and each turn's cached tokens.
    """
    times: list[list[float]] = []
    cached: list[int] = []
    with _running(settings) as engine:
        _all_at_once(engine, short_chats(1, 2, 8))
        for seed in range(rounds):
            answers = list(_talk(engine, conversation(seed, turns)))
            times.append([each.first_token_s for each in answers])
            cached = [each.cached_tokens for each in answers]
    return [statistics.median(each) for each in zip(*times, strict=True)], cached


def beside_others(settings: EngineSettings) -> tuple[list[float], list[float], list[AbortTime]]:
    """Times to the first token of interactive turns, idle and beside a full batch lane; and what
    aborts take.
    """
    with _running(settings) as engine:
        _all_at_once(engine, short_chats(1, 2, 8))
        idle = [_probe(engine, chat) for chat in short_chats(2, PROBES, 8)]
        is_over = threading.Event()
        begun = [threading.Event() for _ in range(settings.max_batch_size)]
        with ThreadPoolExecutor(len(begun)) as pool:
            feeds = [
                pool.submit(_feed, engine, seed, each, is_over)
                for seed, each in enumerate(begun, start=100)
            ]
            wait_until_full(lambda: sum(each.is_set() for each in begun), len(begun))
            busy = [_probe(engine, chat) for chat in short_chats(3, PROBES, 8)]
            is_over.set()
            for feed in feeds:
                feed.result()
        return idle, busy, abort_many(engine, settings.max_batch_size)


def wait_until_full(running: Callable[[], int], most: int) -> int:
    """Until `most` turns are answered at once, or no more have joined for a while, because the
    engine keeps slots free of the batch lane; how many are.

    Raises:
        RuntimeError: not even one.
    """
    count, grew_at = 0, time.monotonic()
    deadline = grew_at + JOINING_S
    while count < most and time.monotonic() < deadline:
        if (now := running()) > count:
            count, grew_at = now, time.monotonic()
        elif count and time.monotonic() - grew_at > STEADY_S:
            break
        time.sleep(0.02)
    if not count:
        raise RuntimeError(f"No turn of the batch lane was begun within {JOINING_S:g} s.")
    return count


def peak_mib() -> float:
    """Of this process, and of the largest child that has ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(who).ru_maxrss for who in whose) / 1024


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class _running:
    def __init__(self, settings: EngineSettings) -> None:
        self._engine = create_engine(settings)

    def __enter__(self) -> Engine:
        self._engine.start()
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def _all_at_once(engine: Engine, chats: Sequence[Chat]) -> list[Answer]:
    with ThreadPoolExecutor(len(chats)) as pool:
        return list(pool.map(lambda chat: answer(engine, Prompt(chat.messages), chat), chats))


def _talk(engine: Engine, chats: Sequence[Chat]) -> Iterable[Answer]:
    past: tuple[Message, ...] = ()
    for chat in chats:
        past += chat.messages
        each = answer(engine, Prompt(past), chat)
        past += (Message(role=Role.ASSISTANT, content=each.text),)
        yield each


def _probe(engine: Engine, chat: Chat) -> float:
    return answer(engine, Prompt(chat.messages), chat).first_token_s


def _feed(engine: Engine, seed: int, has_begun: threading.Event, is_over: threading.Event) -> None:
    ask = partial(Prompt, lane=Lane.BATCH)
    for chat in short_chats(seed, 1_000, 96):
        if is_over.is_set():
            return
        answer(engine, ask(chat.messages), chat, has_begun)
