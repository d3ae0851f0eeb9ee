"""Between the engine `triton` and its server: tensors, bounds, errors; a stand-in for Triton."""

import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineFailure,
    EngineRefused,
    EngineUnavailable,
    InvalidInput,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.triton.wire import (
    NAMESPACE,
    Answered,
    decode_answered,
    decode_asked,
    decode_error,
    encode_answered,
    encode_error,
    encode_prompt,
    pack,
    unpack,
)
from turnmill.workers.turn.abort import Abort, Interrupted, heeding

grpc = pytest.importorskip("grpc", reason="pip install 'turnmill[triton]'")


def test_what_is_asked_arrives_as_it_was() -> None:
    prompt = Prompt((Message(role=Role.USER, content="né 😀"),), "begun ", Lane.BATCH)
    params = GenerationParams(temperature=0, stop=("x",), seed=7).over(DEFAULT_PARAMS)
    sent = {name: pack(value) for name, value in encode_prompt(prompt, params).items()}
    asked = decode_asked({name: unpack("BYTES", data) for name, data in sent.items()})
    assert (asked.action, asked.prompt, asked.complete_params) == ("generate", prompt, params)


def test_what_is_left_out_has_defaults() -> None:
    asked = decode_asked({"messages": '[{"role": "user", "content": "hi"}]', "prefix": ""})
    assert asked.complete_params == DEFAULT_PARAMS
    assert asked.lane is Lane.INTERACTIVE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", "no JSON"),
        ("messages", '[{"role": "robot", "content": ""}]'),
        ("messages", "[" + ",".join(['{"role": "user", "content": "x"}'] * 513) + "]"),
        ("messages", '[{"role": "user", "content": "\\ud800"}]'),
        ("prefix", "x" * 400_001),
        ("params", '{"temperature": 3}'),
        ("params", '{"beams": 3}'),
        ("lane", "fast"),
        ("action", "train"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_asked({name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("finish_reason", [None, "length"])
def test_an_answer_arrives_as_it_was(finish_reason: Any) -> None:
    answered = Answered(Chunk("é", 1, finish_reason, 5, 4), 8192)
    assert decode_answered(encode_answered(answered)) == answered


@pytest.mark.parametrize(
    ("datatype", "data"),
    [("BYTES", b"\3\0\0\0ab"), ("BYTES", b""), ("INT32", b"ab"), ("FP32", b"")],
)
def test_bytes_that_are_not_one_element_are_refused(datatype: str, data: bytes) -> None:
    with pytest.raises(ValueError, match="not one element"):
        unpack(datatype, data)


@pytest.mark.parametrize(
    "error",
    [
        ContextOverflow("Too long.", param="messages"),
        InvalidInput("Bad.", param="lane"),
        EngineUnavailable("Full.\nReally."),
        EngineAway("Loading."),
        EngineBrokeOff("Out of memory."),
        EngineFailure("No."),
    ],
)
def test_an_error_keeps_its_kind_across_the_wire(error: TurnmillError) -> None:
    back = decode_error(f"in model 'turnmill': {encode_error(error)}")
    assert back is not None
    assert (type(back), back.message, back.param) == (type(error), error.message, error.param)
    assert decode_error("Failed to process the request(s)") is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAVAILABLE", EngineBrokeOff),
        ("DEADLINE_EXCEEDED", EngineUnavailable),
        ("RESOURCE_EXHAUSTED", EngineBusy),
        ("NOT_FOUND", EngineRefused),
        ("INTERNAL", EngineUnavailable),
        ("INVALID_ARGUMENT", EngineFailure),
    ],
)
def test_a_code_of_grpc_is_an_error_of_ours(code: str, kind: type[TurnmillError]) -> None:
    from turnmill.workers.engines.triton.errors import translated

    status = grpc.StatusCode[code]
    error = translated(SimpleNamespace(code=lambda: status, details=lambda: "Triton's own words"))
    assert type(error) is kind
    assert "Triton's own words" in error.message


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("failed to connect to all addresses; last error: Connection refused (111)", EngineAway),
        ("DNS resolution failed for triton:8001", EngineAway),
        ("recvmsg:Connection reset by peer", EngineBrokeOff),
        ("Socket closed", EngineBrokeOff),
    ],
)
def test_a_server_never_reached_is_away_and_one_that_hangs_up_broke_off(
    details: str, kind: type[TurnmillError]
) -> None:
    from turnmill.workers.engines.triton.errors import translated

    status = grpc.StatusCode.UNAVAILABLE
    assert type(translated(SimpleNamespace(code=lambda: status, details=lambda: details))) is kind


@pytest.mark.parametrize("endpoint", ["http://host:8000", "host", "grpc://host", "", ":8001"])
def test_an_address_that_is_none_is_refused_with_what_one_is(endpoint: str) -> None:
    from turnmill.workers.engines.triton.engine import open_channel

    with pytest.raises(SettingsError, match="grpc://host:port"):
        open_channel(endpoint)


def test_a_count_that_nobody_waits_for_ends_though_the_server_is_silent() -> None:
    from turnmill.workers.engines.triton.engine import TritonServer

    abort, is_over = Abort(), threading.Event()

    def be_silent(request: bytes, context: Any) -> Any:
        abort.set()
        is_over.wait()
        yield from ()

    method = grpc.unary_stream_rpc_method_handler(be_silent)
    service = "inference.GRPCInferenceService"
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"ModelStreamInfer": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    one = TritonServer(f"127.0.0.1:{port}", EngineSettings(name="triton", silence_s=60))
    began_at = time.monotonic()
    try:
        with heeding(abort), pytest.raises(Interrupted):
            one.count_tokens(Prompt((Message(role=Role.USER, content="Hi"),)))
        assert time.monotonic() - began_at < 30
    finally:
        is_over.set()
        one.close()
        server.stop(None).wait()


def test_a_version_that_is_no_number_is_refused() -> None:
    from turnmill.workers.engines.triton.engine import TritonEngine

    with pytest.raises(SettingsError, match="numbers"):
        TritonEngine(EngineSettings(name="triton", remote_version="stable"))


class Sender:
    """What Triton gives a model to answer one request with."""

    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self.cancelled = threading.Event()

    def send(self, response: Any = None, flags: int = 0) -> None:
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


class Error(SimpleNamespace):
    INVALID_ARG, UNAVAILABLE, INTERNAL = "invalid", "unavailable", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message=message, code=code)


def stand_in() -> Any:
    """`triton_python_backend_utils`, as far as the model needs it."""
    metric = SimpleNamespace(set=lambda value: None)
    family = type(
        "MetricFamily", (SimpleNamespace,), {"GAUGE": 1, "Metric": lambda *_, **__: metric}
    )
    return SimpleNamespace(
        MetricFamily=family,
        TritonError=Error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        Tensor=lambda name, array: (name, array.item()),
        InferenceResponse=lambda **fields: SimpleNamespace(**fields),
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    from turnmill.workers.engines.triton import model as triton_model

    monkeypatch.setattr(triton_model, "configure_logging", lambda settings: None)
    (tmp_path / "1").mkdir()
    (tmp_path / "1/engine.json").write_text('{"name": "echo", "max_batch_size": 1}')
    served: Any = type("Served", (triton_model.ServedModel,), {"backend": stand_in()})()
    args = {"model_repository": str(tmp_path), "model_version": "1"}
    served.initialize(args | {"model_name": "turnmill", "model_instance_name": "turnmill_0"})
    yield served
    served.finalize()


def execute(model: Any, namespace: str = "", **values: str) -> Sender:
    numpy = pytest.importorskip("numpy")
    sender = Sender()
    arrays = {name: numpy.array([[text.encode()]], dtype=object) for name, text in values.items()}
    tensors = {name: SimpleNamespace(as_numpy=lambda a=a: a) for name, a in arrays.items()}
    request = SimpleNamespace(
        get_response_sender=lambda: sender,
        tensors=tensors,
        parameters=lambda: json.dumps({NAMESPACE: namespace}) if namespace else "",
    )
    model.execute([request])
    return sender


def hello(text: str) -> str:
    return '[{"role": "user", "content": "%s"}]' % text  # noqa: UP031 (braces of JSON)


def test_the_served_model_answers_chunk_by_chunk_and_then_ends(model: Any) -> None:
    sender = execute(model, messages=hello("hello you"))
    texts = [dict(sender.sent.get(timeout=20)[0].output_tensors)["text"] for _ in range(3)]
    assert texts == [b"hello", b" you", b""]
    assert sender.sent.get(timeout=20) == (None, 1)


def test_the_served_engine_is_told_whose_prompt_it_is(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, generate = [], model._engine.generate

    def spy(prompt: Prompt, *rest: Any) -> Any:
        seen.append(prompt.cache_namespace)
        return generate(prompt, *rest)

    monkeypatch.setattr(model._engine, "generate", spy)
    for namespace in ("", "tenant"):
        execute(model, namespace, messages=hello("hello")).sent.get(timeout=20)
    assert seen == ["", "tenant"]


def test_a_cancelled_request_is_ended_without_blocking_others(model: Any) -> None:
    waiting = execute(model, messages=hello("[[wait=600]]"))
    others = [execute(model, messages=hello("[[wait=600]]")) for _ in range(7)]
    refused, flags = execute(model, messages=hello("x")).sent.get(timeout=20)
    assert (refused.error.code, flags) == ("unavailable", 1)
    for each in (waiting, *others):
        each.cancelled.set()
        assert each.sent.get(timeout=20) == (None, 1)
