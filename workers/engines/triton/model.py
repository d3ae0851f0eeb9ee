"""The model behind Triton's Python backend (`infra/triton`): an engine of ours, turn by turn.

`execute` only hands requests to threads, so Triton never waits for a turn to take the next one,
and all turns generate together in the engine. Runs in Triton's stub process alone, which brings
`triton_python_backend_utils` (https://github.com/triton-inference-server/python_backend).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from turnmill.schemas.errors import (
    EngineDied,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.settings import EngineSettings, load_settings
from turnmill.workers.engines.base import Chunk
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.engines.triton.wire import (
    INPUTS,
    NAMESPACE,
    OUTPUTS,
    Answered,
    Asked,
    Value,
    decode_asked,
    encode_answered,
    encode_error,
)
from turnmill.workers.turn.abort import Abort

if TYPE_CHECKING:
    from numpy import generic
    from numpy.typing import NDArray
    from triton_python_backend_utils import (
        InferenceRequest,
        InferenceResponseSender,
        Metric,
        Tensor,
    )

    #: A tensor for each of `INPUTS`; None: it was left out.
    Arrays = list[NDArray[generic] | None]

log = structlog.get_logger(__name__)

#: In a version's folder: settings of its engine, over those of the environment.
SETTINGS_FILE = "engine.json"
#: How often Triton is asked which turns nobody waits for any more.
CANCEL_CHECK_S = 0.05
#: Requests at once, as a multiple of what the engine generates together; the next is refused,
#: and finds another replica.
QUEUE_FACTOR = 8
#: Exit status of a stub whose engine has died (EX_SOFTWARE); Triton starts another.
DEAD_ENGINE_STATUS = 70


class ServedModel:
    """Base of the `TritonPythonModel` in each version's folder, which names `backend`."""

    #: The module `triton_python_backend_utils`.
    backend: ClassVar[ModuleType]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine; Triton calls the model ready when this returns."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = _engine_settings(folder)
        self._engine = create_engine(settings)
        if not self._engine.capabilities.continues:
            raise SettingsError(f"The engine '{settings.name}' cannot go on after a prefix.")
        self._engine.start()
        self._room = QUEUE_FACTOR * settings.max_batch_size
        self._turns: set[_Turn] = set()
        self._lock = Lock()
        self._closed = Event()
        self._gauge = self._running_gauge(args)
        self._watcher = Thread(target=self._watch, name="cancelled-turns", daemon=True)
        self._watcher.start()

    def execute(self, requests: "list[InferenceRequest]") -> None:
        for request in requests:
            turn = _Turn(request.get_response_sender(), self.backend)
            tensors = [self.backend.get_input_tensor_by_name(request, name) for name in INPUTS]
            arrays = [None if tensor is None else tensor.as_numpy() for tensor in tensors]
            arguments = [turn, arrays, _namespace(request)]
            Thread(target=self._serve, args=arguments, name="turn", daemon=True).start()

    def finalize(self) -> None:
        """Triton unloads the model or ends."""
        self._closed.set()
        self._watcher.join()
        self._engine.close()

    def _serve(self, turn: "_Turn", arrays: "Arrays", namespace: str) -> None:
        try:
            with self._running(turn):
                asked = decode_asked(_values(arrays))
                for answered in self._answer(asked, namespace, turn.abort):
                    turn.send(answered)
            turn.end()
        except EngineDied:
            log.critical("engine.died")
            os._exit(DEAD_ENGINE_STATUS)
        except TurnmillError as error:
            turn.end(error)
        except Exception:
            log.exception("turn.failed")
            turn.end(EngineFailure("The served engine failed; its log says more."))

    def _answer(self, asked: Asked, namespace: str, abort: Abort) -> Iterator[Answered]:
        window = self._engine.context_window
        if asked.action == "describe":
            yield Answered(Chunk("", finish_reason="stop"), window)
        elif not asked.messages:
            raise InvalidInput("There are no messages.", param="messages")
        elif asked.action == "count_tokens":
            count = self._engine.count_tokens(asked.prompt)
            yield Answered(Chunk("", finish_reason="stop", prompt_tokens=count), window)
        else:
            prompt = replace(asked.prompt, cache_namespace=namespace)
            for chunk in self._engine.generate(prompt, asked.complete_params, abort):
                yield Answered(chunk, window)

    @contextmanager
    def _running(self, turn: "_Turn") -> Iterator[None]:
        with self._lock:
            if len(self._turns) >= self._room:
                raise EngineUnavailable(f"It has {len(self._turns)} turns already.")
            self._turns.add(turn)
            self._gauge.set(len(self._turns))
        try:
            yield
        finally:
            with self._lock:
                self._turns.discard(turn)
                self._gauge.set(len(self._turns))

    def _watch(self) -> None:
        while not self._closed.wait(CANCEL_CHECK_S):
            self._check_cancelled()

    def _check_cancelled(self) -> None:
        # Not in the loop above: what it still named while it waits would keep the last turn from
        # ending for Triton, which unloads no model that has one.
        with self._lock:
            turns = list(self._turns)
        for turn in turns:
            turn.check_cancelled()

    def _running_gauge(self, args: Mapping[str, str]) -> "Metric":
        families = self.backend.MetricFamily
        # Kept: its metrics end with it.
        self._family = families(
            name="turnmill_turns_running_count",
            description="Turns that the served engine works on or has in its queue",
            kind=families.GAUGE,
        )
        names = ("model_name", "model_version", "model_instance_name")
        return self._family.Metric(labels={name: args[name] for name in names})


class _Turn:
    """One request, and what is sent back for it."""

    def __init__(self, sender: "InferenceResponseSender", backend: ModuleType) -> None:
        self._sender = sender
        self._backend = backend
        # Triton forgets a request with its last response: to ask about it then would crash it.
        self._lock = Lock()
        self._is_ended = False
        self.abort = Abort()

    def check_cancelled(self) -> None:
        with self._lock:
            if not self._is_ended and self._sender.is_cancelled():
                self.abort.set()

    def send(self, answered: Answered) -> None:
        values = encode_answered(answered)
        tensors = [self._tensor(name, values[name]) for name in OUTPUTS]
        self._sender.send(self._backend.InferenceResponse(output_tensors=tensors))

    def end(self, error: TurnmillError | None = None) -> None:
        final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        with self._lock:
            self._is_ended = True
            if error is None:
                self._sender.send(flags=final)
                return
            told = self._backend.TritonError(encode_error(error), self._code(error))
            self._sender.send(self._backend.InferenceResponse(error=told), flags=final)

    def _code(self, error: TurnmillError) -> object:
        codes = self._backend.TritonError
        if isinstance(error, InvalidInput):
            return codes.INVALID_ARG
        return codes.UNAVAILABLE if isinstance(error, EngineUnavailable) else codes.INTERNAL

    def _tensor(self, name: str, value: Value) -> "Tensor":
        from numpy import array, int32, object_  # the backend's own, which has it for certain

        if isinstance(value, int):
            return self._backend.Tensor(name, array([[value]], dtype=int32))
        return self._backend.Tensor(name, array([[value.encode()]], dtype=object_))


def _engine_settings(folder: Path) -> EngineSettings:
    """Those of the environment, and over them those of the version's folder.

    Raises:
        SettingsError: they are wrong.
    """
    path = folder / SETTINGS_FILE
    own: Any = {}
    if path.exists():
        try:
            own = json.loads(path.read_text())
        except ValueError as error:
            raise SettingsError(f"{path} is not JSON: {error}.") from None
        if not isinstance(own, dict):
            raise SettingsError(f"{path} must hold a JSON object, settings of the engine.")
        if (folder / str(own.get("model"))).exists():
            own["model"] = str(folder / own["model"])
    settings = load_settings(engine=own)
    configure_logging(settings.log)
    return settings.engine.model_copy(update={"models_dir": settings.models_dir})


def _namespace(request: "InferenceRequest") -> str:
    return str(json.loads(request.parameters() or "{}").get(NAMESPACE, ""))


def _values(arrays: "Arrays") -> dict[str, Value]:
    """Text tensors of one element each, by name; those that were left out are not in it."""
    values: dict[str, Value] = {}
    for name, array in zip(INPUTS, arrays, strict=True):
        if array is None:
            continue
        if array.size != 1:
            raise InvalidInput(f"One value per request; this has {array.size}.", param=name)
        try:
            values[name] = array.item().decode()
        except UnicodeDecodeError:
            raise InvalidInput("It is not UTF-8.", param=name) from None
    return values
