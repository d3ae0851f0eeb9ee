"""A batch in a process of its own, which does nothing but step it.

Inference libraries hold the GIL during a step. In the worker's own process its heartbeats,
database calls and readers would wait for the end of a step, several times a turn, and the steps
for them. The two processes exchange one message a step, whatever the number of turns.

The child ends with its parent, even with one that was killed, and leaves signals to it. When
the child dies, every turn in it fails at once, and the engine takes no new one.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import NoReturn

import structlog
from structlog.typing import EventDict, Processor

from turnmill.schemas.errors import (
    EngineAway,
    EngineDied,
    EngineFailure,
    EngineUnavailable,
    TurnmillError,
)
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.process.garbage import spare_loaded
from turnmill.schemas.process.launch import launch_command
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Lane
from turnmill.workers.engines.local.batching import cannot_load
from turnmill.workers.engines.local.scheduling import Batch, Facts, Generation, Token
from turnmill.workers.engines.text.call_form import CallForm

log = structlog.get_logger(__name__)

#: How long a child that was told to end may take before it is killed.
SHUTDOWN_S = 5.0


#: Imported rather than run: its messages have to be of the classes that the parent knows.
_PROGRAM = f"from {__name__} import main; main()"


@dataclass(frozen=True, slots=True)
class _Order:
    """What the child is to load: a function `load(settings)` returns the batch and its facts."""

    path: list[str]
    load: str
    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class _Turn:
    key: int
    prompt_ids: list[int]
    limit: int
    params: GenerationParams
    lane: Lane
    namespace: str
    held_to: ResponseFormat | CallForm | None
    prefix: str


@dataclass(frozen=True, slots=True)
class _Abort:
    key: int


@dataclass(frozen=True, slots=True)
class _Note:
    """A line for the log."""

    level: str
    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Death:
    reason: str


@dataclass(frozen=True, slots=True)
class _News:
    """The tokens and ends of one step."""

    #: A turn's key, what happened to it, and its cached tokens so far.
    events: list[tuple[int, Token | TurnmillError | None, int]]
    held: Mapping[str, float]


class ChildScheduler:
    """The parent's half. `load` is a `module:function` that the child imports and calls."""

    def __init__(self, load: str, settings: EngineSettings) -> None:
        self._connection, self._theirs = Pipe()
        self._connection.send(_Order(sys.path, load, settings))
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: Future[Facts] = Future()
        self._generations: dict[int, Generation] = {}
        #: As the child said last.
        self._held: Mapping[str, float] = {}
        self._keys = count()
        self._lock = Lock()
        #: Why no more turns are taken.
        self._refusal: EngineUnavailable | None = None
        # The thread that starts the child has to live as long as it.
        self._thread = Thread(target=self._run, name="engine-child", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> Facts:
        return self._facts.result()

    @property
    def held(self) -> Mapping[str, float]:
        return {**self._held, "open": len(self._generations)}

    def check(self) -> None:
        if self._refusal:
            raise self._error()

    def submit(self, generation: Generation) -> None:
        turn = _Turn(
            next(self._keys),
            list(generation.prompt_ids),
            generation.limit,
            generation.params,
            generation.lane,
            generation.namespace,
            generation.held_to,
            generation.prefix,
        )
        with self._lock:
            if self._refusal:
                raise EngineAway(self._refusal.message)
            self._generations[turn.key] = generation
            self._send(turn)

    def give_up(self, generation: Generation) -> None:
        with self._lock:
            for key, each in self._generations.items():
                if each is generation:
                    del self._generations[key]
                    self._send(_Abort(key))
                    return

    def close(self) -> None:
        self._refuse(EngineAway("The engine is closed."))
        with self._lock:
            self._send(None)
        self._thread.join(SHUTDOWN_S)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join()

    def _send(self, message: _Turn | _Abort | None) -> None:
        with suppress(OSError):  # it has died; `_run` finds out, and tells everyone
            self._connection.send(message)

    def _run(self) -> None:
        with self._connection:
            try:
                self._start()
                while True:
                    self._take(self._connection.recv())
            except (EOFError, OSError) as error:
                self._end(f"Its process {self._ending(error)}.")
            except BaseException as error:
                assert self._process is not None
                self._process.kill()
                self._end(f"{type(error).__name__}: {error}")
                raise

    def _start(self) -> None:
        with self._theirs:
            self._process = subprocess.Popen(
                launch_command([sys.executable, "-c", _PROGRAM, str(self._theirs.fileno())]),
                pass_fds=[self._theirs.fileno()],
                # Ctrl-C in a terminal goes to a whole group.
                start_new_session=True,
            )

    def _take(self, message: object) -> None:
        match message:
            case _News():
                self._pass_on(message)
            case Facts():
                self._facts.set_result(message)
            case _Note():
                getattr(log, message.level)(message.event, **message.fields)
            case _Death():
                self._end(message.reason)
            case TurnmillError():
                self._facts.set_exception(message)

    def _pass_on(self, news: _News) -> None:
        self._held = news.held
        with self._lock:
            for key, event, cached_tokens in news.events:
                generation = self._generations.get(key)
                if generation is None:
                    continue
                if not isinstance(event, Token) or event.finish_reason:
                    del self._generations[key]
                    generation.cached_tokens = cached_tokens
                generation.events.put(event)

    def _end(self, reason: str) -> None:
        """Tell everyone, the first time that it is called."""
        if self._refusal is None and self._facts.done():
            log.error("engine.died", reason=reason)
        self._refuse(EngineDied(f"The engine has stopped after an error: {reason}"))
        if not self._facts.done():
            self._facts.set_exception(EngineFailure(f"The model cannot be loaded: {reason}"))
        with self._lock:
            told = list(self._generations.values())
            self._generations.clear()
        for generation in told:
            generation.events.put(self._error())

    def _refuse(self, refusal: EngineUnavailable) -> None:
        with self._lock:
            self._refusal = self._refusal or refusal

    def _error(self) -> EngineUnavailable:
        assert self._refusal is not None
        return type(self._refusal)(self._refusal.message)

    def _ending(self, error: Exception) -> str:
        if self._process is None:
            return f"could not be started: {error}"
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "was killed, by somebody or because memory ran out"
        return f"ended with status {status}"


class Child:
    """The child's half: receives turns, steps the batch, sends tokens."""

    def __init__(self, connection: Connection, batch: Batch) -> None:
        self._connection = connection
        self._batch = batch
        self._generations: dict[int, Generation] = {}

    def run(self) -> None:
        """Step the batch until the parent sends the end or closes the connection."""
        try:
            while self._read():
                if self._batch.is_busy:
                    self._batch.step()
                self._connection.send(self._news())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return

    def _read(self) -> bool:
        """Receive messages; block while the batch is idle. Return False after the last one."""
        timeout_s = 0.0 if self._batch.is_busy else None
        has_unwanted = False
        while self._connection.poll(timeout_s):
            message = self._connection.recv()
            if message is None:
                return False
            if isinstance(message, _Turn):
                self._admit(message)
            elif generation := self._generations.get(message.key):
                generation.is_unwanted = has_unwanted = True
            timeout_s = 0.0
        if has_unwanted:
            # Said before the step: what they held is free now, and not when it ends.
            self._batch.drop_unwanted()
            self._connection.send(self._news())
        return True

    def _admit(self, turn: _Turn) -> None:
        generation = Generation(
            turn.prompt_ids,
            turn.limit,
            turn.params,
            turn.lane,
            turn.namespace,
            turn.held_to,
            turn.prefix,
        )
        self._generations[turn.key] = generation
        try:
            self._batch.admit(generation)
        except TurnmillError as error:
            generation.events.put(error)
        except Exception as error:
            generation.events.put(EngineFailure(f"The engine refuses the turn: {error}"))

    def _news(self) -> _News:
        events: list[tuple[int, Token | TurnmillError | None, int]] = []
        for key, generation in list(self._generations.items()):
            while not generation.events.empty():
                event = generation.events.get()
                events.append((key, event, generation.cached_tokens))
                if not isinstance(event, Token) or event.finish_reason:
                    self._generations.pop(key)
        return _News(events, dict(self._batch.held))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    order: _Order = connection.recv()
    structlog.configure(processors=[_forward_to(connection)])
    # What torch and transformers load stays: to look for garbage in it, again and again, is a fifth
    # of their start.
    gc.disable()
    batch, facts = _loaded(connection, order)
    spare_loaded()
    gc.enable()
    connection.send(facts)
    try:
        Child(connection, batch).run()
    except BaseException as error:
        connection.send(_Death(f"{type(error).__name__}: {error}"))
        raise
    # What is left in the batch is nobody's any more; libraries take their time to clear it up.
    os._exit(0)


def _loaded(connection: Connection, order: _Order) -> tuple[Batch, Facts]:
    sys.path[:] = order.path
    module, _, name = order.load.partition(":")
    try:
        load: Callable[[EngineSettings], tuple[Batch, Facts]] = getattr(import_module(module), name)
        return load(order.settings)
    except Exception as error:
        reason = error if isinstance(error, TurnmillError) else cannot_load(order.settings, error)
        connection.send(reason)
        raise SystemExit(1) from error


def _forward_to(connection: Connection) -> Processor:
    """A processor of structlog: the parent logs, where and as it logs everything."""

    def forward(_: object, level: str, fields: EventDict) -> NoReturn:
        connection.send(_Note(level, fields.pop("event"), fields))
        raise structlog.DropEvent

    return forward
