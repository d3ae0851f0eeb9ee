"""NVIDIA Triton: turns go to the model of `infra/triton`, over KServe v2 on gRPC.

Each turn has a stream of its own, all of them on one connection to each server: an abort ends
its stream, which is how Triton learns of it, and no other. Each stream has a thread that reads
it, so that a turn can leave a server that says nothing.
"""

import itertools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock, Thread
from typing import Any

import grpc
import grpc.experimental
from tritonclient.grpc import service_pb2 as pb

from turnmill.schemas.errors import EngineUnavailable, SettingsError, Unanswered
from turnmill.schemas.observability.masking import masked_urls
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote.engine import RemoteEngine
from turnmill.workers.engines.triton.errors import translated
from turnmill.workers.engines.triton.wire import (
    INPUTS,
    NAMESPACE,
    OUTPUTS,
    Answered,
    Value,
    decode_answered,
    decode_error,
    encode_prompt,
    pack,
    unpack,
)
from turnmill.workers.turn.abort import Abort, Interrupted, heeded

_SERVICE = "/inference.GRPCInferenceService/"
#: Errors end a stream with a status, as anywhere in gRPC, and do not come as a text within it.
_ERRORS_AS_STATUS = ("triton_grpc_error", "true")
#: Health checks are answered at once or not at all.
CHECK_TIMEOUT_S = 3.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # By default a server that was away for long is tried every two minutes only.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The thread that reads a stream is the only one that works for it: none outlives `close`.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
)


class TritonEngine(RemoteEngine):
    def __init__(self, settings: EngineSettings) -> None:
        if settings.remote_version and not settings.remote_version.isdecimal():
            raise SettingsError(
                "Triton's versions are numbers: TURNMILL_ENGINE__REMOTE_VERSION is "
                f"'{settings.remote_version}'."
            )
        super().__init__(settings, TritonServer)


class TritonServer:
    """One `tritonserver`: its address is `grpc://host:port`, `grpcs://host:port` or `host:port`.

    Raises:
        SettingsError: the address is none of these.
    """

    def __init__(self, endpoint: str, settings: EngineSettings) -> None:
        self._endpoint = endpoint
        self._model = settings.model_at_endpoints
        self._version = settings.remote_version or ""
        self._silence_s = settings.silence_s
        key = settings.endpoint_key
        bearer = [("authorization", f"Bearer {key.get_secret_value()}")] if key else []
        self._metadata = (*bearer, _ERRORS_AS_STATUS)
        self._channel = open_channel(endpoint)
        # A unary request is, on the wire, a stream of one that ends.
        self._stream = self._channel.unary_stream(
            f"{_SERVICE}ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self._ids = itertools.count(1)
        self._lock = Lock()
        self._streams: set[_Stream] = set()
        self._is_closed = False

    @property
    def name(self) -> str:
        return masked_urls(self._endpoint)

    def check(self) -> None:
        model = {"name": self._model, "version": self._version}
        if not self._call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready:
            raise EngineUnavailable("the server is not ready")
        if not self._call("ModelReady", pb.ModelReadyRequest(**model), pb.ModelReadyResponse).ready:
            raise EngineUnavailable(f"{self._named} is not loaded")
        metadata = self._call(
            "ModelMetadata", pb.ModelMetadataRequest(**model), pb.ModelMetadataResponse
        )
        config = self._call("ModelConfig", pb.ModelConfigRequest(**model), pb.ModelConfigResponse)
        wrong = _differences("input", INPUTS, metadata.inputs)
        wrong += _differences("output", OUTPUTS, metadata.outputs)
        if not config.config.model_transaction_policy.decoupled:
            wrong.append("it is not decoupled")
        if wrong:
            raise EngineUnavailable(
                f"{self._named} is not the one of infra/triton: {', '.join(wrong)}"
            )

    def context_window(self) -> int:
        return self._last({"action": "describe"}).context_window

    def count_tokens(self, prompt: Prompt) -> int:
        params = GenerationParams(template_kwargs=dict(prompt.template_kwargs) or None)
        asked = encode_prompt(prompt, params) | {"action": "count_tokens"}
        return self._last(asked).chunk.prompt_tokens

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        asked = encode_prompt(prompt, params)
        for answered in self._ask(asked, abort, prompt.cache_namespace):
            yield answered.chunk

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        for stream in streams:
            stream.join()
        self._channel.close()

    @property
    def _named(self) -> str:
        version = f" version {self._version}" if self._version else ""
        return f"the model '{self._model}'{version}"

    def _last(self, values: Mapping[str, Value]) -> Answered:
        abort = heeded()
        answers = list(self._ask(values, abort))
        if abort.is_set():
            raise Interrupted
        if not answers:
            raise EngineUnavailable("it ended the stream without an answer")
        return answers[-1]

    def _ask(
        self, values: Mapping[str, Value], abort: Abort, namespace: str = ""
    ) -> Iterator[Answered]:
        """What the model answers; silence, or the stream's end, is the reader's to judge."""
        if abort.is_set():
            return
        stream = self._begin(values, namespace)
        is_last = False
        try:
            with abort.telling(stream.wake):
                while not is_last and (response := stream.next(abort, self._silence_s)) is not None:
                    answered = _answered(response)
                    is_last = answered.chunk.finish_reason is not None
                    yield answered
        finally:
            # Its thread reads the end that is about to come. To cancel a stream just then has
            # brought a Triton (2.51) down.
            if not is_last:
                stream.cancel()

    def _begin(self, values: Mapping[str, Value], namespace: str) -> "_Stream":
        request = pb.ModelInferRequest(
            model_name=self._model,
            model_version=self._version,
            id=str(next(self._ids)),
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name=name, datatype=INPUTS[name], shape=(1, 1)
                )
                for name in values
            ],
            raw_input_contents=[pack(value) for value in values.values()],
        )
        if namespace:
            # Not a tensor: a served model of the previous release has none for it.
            request.parameters[NAMESPACE].string_param = namespace
        with self._lock:
            if self._is_closed:
                raise EngineUnavailable("The engine is closed.")
            call = self._stream(request, metadata=self._metadata)
            stream = _Stream(call, self._forget)
            self._streams.add(stream)
        stream.start()
        return stream

    def _forget(self, stream: "_Stream") -> None:
        with self._lock:
            self._streams.discard(stream)

    def _call(self, method: str, request: Any, response: Any) -> Any:
        ask = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return ask(request, timeout=CHECK_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise EngineUnavailable(translated(error).message) from None
        except ValueError:  # the channel is closed
            raise EngineUnavailable("The engine is closed.") from None


class _Stream(Thread):
    """Reads one stream as it comes."""

    def __init__(self, call: grpc.Call, forget: Callable[["_Stream"], None]) -> None:
        super().__init__(name="triton-stream", daemon=True)
        self._call = call
        self._forget = forget
        #: Responses, and after the last one the error that ended the stream, or None.
        self._came: queue.SimpleQueue[pb.ModelStreamInferResponse | grpc.RpcError | None] = (
            queue.SimpleQueue()
        )

    def run(self) -> None:
        end = None
        try:
            for response in self._call:
                self._came.put(response)
        except grpc.RpcError as error:
            end = error
        finally:
            self._forget(self)
            self._came.put(end)

    def next(self, abort: Abort, silence_s: float) -> "pb.ModelStreamInferResponse | None":
        """The next response; None after the last, and once `abort` is set.

        Raises:
            TurnmillError: the stream ended with it, or nothing came for `silence_s` seconds.
        """
        try:
            came = self._came.get(timeout=silence_s)
        except queue.Empty:
            raise Unanswered(f"it said nothing for {silence_s:g} s") from None
        if abort.is_set():
            return None
        if isinstance(came, grpc.RpcError):
            raise translated(came)
        return came

    def wake(self) -> None:
        """Who waits for a response looks at the abort."""
        self._came.put(None)

    def cancel(self) -> None:
        """Tell the server that nobody waits any more; nothing to it if the stream has ended."""
        self._call.cancel()


def open_channel(endpoint: str) -> grpc.Channel:
    """A connection that is made when it is first used. Raises `SettingsError` for the address."""
    scheme, _, target = endpoint.rpartition("://")
    host, _, port = target.rstrip("/").rpartition(":")
    if scheme not in ("", "grpc", "grpcs") or not host or not port.isdecimal():
        raise SettingsError(
            f"'{masked_urls(endpoint)}' is not the address of a Triton server: grpc://host:port, "
            "or grpcs:// with TLS. Its gRPC port is 8001, if nobody chose another."
        )
    if "@" in host:
        raise SettingsError(
            f"'{masked_urls(endpoint)}' has a login in it, which gRPC does not send. Remove it; a "
            "token for a proxy before Triton belongs into TURNMILL_ENGINE__ENDPOINT_KEY."
        )
    if scheme == "grpcs":
        credentials = grpc.ssl_channel_credentials()
        return grpc.secure_channel(f"{host}:{port}", credentials, options=CHANNEL_OPTIONS)
    return grpc.insecure_channel(f"{host}:{port}", options=CHANNEL_OPTIONS)


def _answered(response: pb.ModelStreamInferResponse) -> Answered:
    if text := response.error_message:
        raise decode_error(text) or EngineUnavailable(text)
    answer = response.infer_response
    try:
        contents = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return decode_answered({each.name: unpack(each.datatype, data) for each, data in contents})
    except ValueError as error:
        raise EngineUnavailable(f"its response is not what was asked for: {error}") from None


def _differences(
    kind: str, wanted: Mapping[str, str], found: "Sequence[pb.ModelMetadataResponse.TensorMetadata]"
) -> list[str]:
    """Tensors that are missing or of another datatype, in words."""
    datatypes = {tensor.name: tensor.datatype for tensor in found}
    return [
        f"it has no {kind} '{name}' of {datatype}"
        for name, datatype in wanted.items()
        if datatypes.get(name) != datatype
    ]
