"""Servers vary in what they send; a turn is answered all the same, or fails for what it asks."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event
from typing import Any

import pytest
from structlog.testing import capture_logs

from turnmill.schemas.errors import (
    EngineAway,
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote.members import FAILURES_TO_OPEN
from turnmill.workers.turn.abort import Abort, Interrupted, heeding
from turnmill.workers.turn.clean import clean

from .odd_server import DONE, HELLOS, OddServer, chunk, event, spelled

pytest.importorskip("httpx")

FILTERED = event(chunk("Hel")) + event(chunk(None, "content_filter")) + DONE


Ask = Callable[..., list[Chunk]]


@pytest.fixture
def ask(odd: OddServer) -> Iterator[Ask]:
    from turnmill.workers.engines.openai_http.engine import OpenAIEngine

    engines: list[OpenAIEngine] = []

    def ask(
        text: str = "Hi",
        url: str = "",
        namespace: str = "",
        abort: Abort | None = None,
        **params: Any,
    ) -> list[Chunk]:
        if not engines:
            settings = EngineSettings(
                name="openai_http",
                endpoints=(url or odd.url,),
                remote_model="m",
                context_window=512,
                silence_s=5,
            )
            engines.append(OpenAIEngine(settings))
            engines[0].start()
        wanted = GenerationParams(max_tokens=20, **params).over(DEFAULT_PARAMS)
        message = Message(role=Role.USER, content=text)
        kwargs = wanted.template_kwargs or {}
        prompt = Prompt((message,), cache_namespace=namespace, template_kwargs=kwargs)
        return list(engines[0].generate(prompt, wanted, abort or Abort()))

    ask.engines = engines  # type: ignore[attr-defined]
    yield ask
    for engine in engines:
        engine.close()


def text_of(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks)


def end_of(chunks: list[Chunk]) -> tuple[str, str | None]:
    return text_of(chunks), chunks[-1].finish_reason


@pytest.mark.parametrize("way", HELLOS)
def test_a_reply_is_read_however_its_server_sends_it(ask: Ask, odd: OddServer, way: str) -> None:
    odd.says = HELLOS[way]
    assert end_of(ask()) == ("Hello", "stop")


def test_a_whole_completion_is_a_reply_too(ask: Ask, odd: OddServer) -> None:
    message = {"role": "assistant", "content": "Hello"}
    odd.kind = "application/json; charset=utf-8"
    odd.says = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    assert end_of(ask()) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("STOP", "stop"),
        ("tool_calls", "stop"),
        ("function_call", "stop"),
        ("completed", "stop"),
        ("stop_sequence", "stop"),
        ("never seen before", "stop"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ("refusal", "content_filter"),
        ("SAFETY", "content_filter"),
    ],
)
def test_every_reason_ends_the_reply(ask: Ask, odd: OddServer, said: str, means: str) -> None:
    odd.says = event(chunk("Hello")) + event(chunk(None, said)) + DONE
    assert end_of(ask()) == ("Hello", means)


def test_an_unknown_reason_is_logged_once(ask: Ask, odd: OddServer) -> None:
    odd.says = event(chunk("Hello", "bored")) + DONE
    with capture_logs() as logs:
        assert [end_of(ask()) for _ in range(3)] == [("Hello", "stop")] * 3
    told = [line["reason"] for line in logs if line["event"] == "replica.unknown_finish_reason"]
    assert told == ["bored"]


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_reply_that_its_server_gave_up_is_tried_again(
    ask: Ask, odd: OddServer, reason: str
) -> None:
    odd.says = event(chunk("Hel")) + event(chunk(None, reason)) + DONE
    with pytest.raises(EngineUnavailable, match=reason):
        ask()


@pytest.mark.parametrize(
    "body",
    [
        {"error": "model overloaded"},
        {"error": {"message": "CUDA out of memory", "type": "server_error", "code": 500}},
        {"text": "**NETWORK ERROR**", "error_code": 50004},
    ],
)
def test_an_error_in_the_stream_is_tried_again(ask: Ask, odd: OddServer, body: Any) -> None:
    odd.says = event(chunk("Hel")) + event(body) + DONE
    with pytest.raises(EngineUnavailable):
        ask()


@pytest.mark.parametrize(
    "error",
    [
        {"message": "bad image", "type": "BadRequestError", "code": 400},
        {"message": "bad image", "type": "invalid_request_error", "code": None},
    ],
)
def test_an_error_in_the_stream_that_blames_the_turn_fails_it(
    ask: Ask, odd: OddServer, error: Any
) -> None:
    odd.says = event({"error": error}) + DONE
    with pytest.raises(EngineFailure, match="bad image"):
        ask()


def test_a_stream_without_a_reply_is_none(ask: Ask, odd: OddServer) -> None:
    odd.says = DONE
    with pytest.raises(EngineUnavailable, match="without a reply"):
        ask()


def test_a_stream_that_is_cut_off_is_no_whole_reply(ask: Ask, odd: OddServer) -> None:
    odd.says = event(chunk("Hel"))
    with pytest.raises(EngineUnavailable, match="in the middle"):
        ask()


@pytest.mark.parametrize(
    ("pieces", "means"),
    [
        ((r"\ud83d", r"\ude00"), "\N{GRINNING FACE}"),
        ((r"cut \ud83d",), "cut \N{REPLACEMENT CHARACTER}"),
        ((r"\ud83d", "x"), "\N{REPLACEMENT CHARACTER}x"),
        ((r"\ude00",), "\N{REPLACEMENT CHARACTER}"),
        ((r"\ud83d\ude00\u2028é",), "\N{GRINNING FACE}\u2028é"),
    ],
)
def test_half_a_surrogate_pair_is_joined_or_replaced(
    ask: Ask, odd: OddServer, pieces: tuple[str, ...], means: str
) -> None:
    odd.says = b"".join(map(spelled, pieces)) + event(chunk(None, "stop")) + DONE
    assert text_of(list(clean(ask()))) == means


def test_a_filter_that_withholds_replies_harms_no_neighbour(ask: Ask, odd: OddServer) -> None:
    odd.says = {"FILTER": FILTERED}
    ask()
    prompts = ["FILTER x", "FILTER y", "Hi", "Hi", "Hi"] * 4
    with ThreadPoolExecutor(len(prompts)) as pool:
        ends = [end_of(reply) for reply in pool.map(ask, prompts)]
    assert ends == [("Hel", "content_filter")] * 2 + [("Hello", "stop")] * 3 + ends[:5] * 3
    assert len(odd.bodies) == 1 + len(prompts)


FLAGGED = {"reasons": ["violence"], "flagged_input": "Hi", "provider_name": "OpenAI"}
BREACH = "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "filtered", "code": "content_filter"}),
        (400, {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}),
        (400, {"message": "no", "type": "content_policy_violation"}),
        (400, {"message": "Content Exists Risk", "type": "invalid_request_error"}),
        (400, {"message": "no", "code": "InputTextSensitiveContentDetected"}),
        (403, {"message": "Input was flagged", "code": 403, "metadata": FLAGGED}),
        (403, {"message": "no", "metadata": {"error_type": "content_policy_violation"}}),
        (403, {"message": "Blocked", "code": 403, "metadata": {"patterns": ["override"]}}),
        (403, BREACH),
    ],
)
def test_a_prompt_that_a_filter_withholds_ends_with_content_filter(
    ask: Ask, odd: OddServer, status: int, error: Any
) -> None:
    odd.refuses = lambda body: (status, {"error": error})
    for _ in range(2 * FAILURES_TO_OPEN):
        assert end_of(ask()) == ("", "content_filter")


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 500, 502, 503, 504, 529])
def test_a_status_that_one_prompt_gets_harms_no_neighbour(
    ask: Ask, odd: OddServer, status: int
) -> None:
    no = (status, {"error": {"message": "no"}})
    odd.refuses = lambda body: no if body["messages"][-1]["content"] == "POISON" else None
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(EngineUnavailable) as caught:
            ask("POISON")
        assert not isinstance(caught.value, EngineAway)
    assert end_of(ask()) == ("Hello", "stop")


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 502, 503, 504, 529])
def test_a_status_that_every_prompt_gets_is_no_turn_s_fault(
    ask: Ask, odd: OddServer, status: int
) -> None:
    odd.refuses = lambda body: (status, {"error": {"message": "no"}})
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(EngineAway):
            ask()
    assert len(odd.bodies) == 2 * FAILURES_TO_OPEN, "turns and control questions, then no more"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("is_date", [False, True])
def test_a_server_that_asks_for_a_pause_is_asked_again_after_it(
    ask: Ask, odd: OddServer, eventually: Callable[..., None], status: int, is_date: bool
) -> None:
    """A date has whole seconds: of two, more than one is left."""
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    odd.headers = {"Retry-After": until if is_date else "2"}
    odd.refuses = lambda body: (status, {"error": {"message": "no"}})
    began_at = time.monotonic()
    with pytest.raises(EngineAway) as caught:
        ask()
    asked_s = caught.value.retry_after_s
    assert asked_s is not None
    assert 1 <= asked_s <= 3
    odd.refuses = lambda body: None

    def is_answered() -> bool:
        try:
            return end_of(ask()) == ("Hello", "stop")
        except EngineAway:
            assert len(odd.bodies) == 2, "the turn and the control question"
            return False

    eventually(is_answered)
    assert time.monotonic() - began_at >= asked_s


def test_a_pause_is_kept_though_the_answer_repeats_the_prompt(ask: Ask, odd: OddServer) -> None:
    prompt = "A prompt that no log may hold, POISON"
    odd.headers = {"Retry-After": "7"}
    odd.refuses = lambda body: (
        (429, {"error": {"message": prompt}}) if body["messages"][-1]["content"] == prompt else None
    )
    with pytest.raises(EngineBusy, match="repeats the prompt") as caught:
        ask(prompt)
    assert caught.value.retry_after_s == 7.0


def test_a_turn_that_is_aborted_does_not_wait_for_the_control_question(
    ask: Ask, odd: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.engines.remote.control.CONTROL_S", 30)
    abort, is_over = Abort(), Event()

    def refuse(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["content"] == "POISON":
            return 403, {"error": {"message": "no"}}
        abort.set()
        is_over.wait()
        return None

    odd.refuses = refuse
    began_at = time.monotonic()
    try:
        assert ask("POISON", abort=abort) == []
        assert time.monotonic() - began_at < 30
    finally:
        is_over.set()
    assert len(odd.bodies) == 2
    odd.refuses = lambda body: None
    assert end_of(ask()) == ("Hello", "stop")


@pytest.fixture
def counting(odd: OddServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Abort]:
    """The server counts like vLLM's. From now on a count sets the abort and gets no answer."""
    monkeypatch.setattr("turnmill.workers.engines.remote.http_front.SHORT_S", 60)
    odd.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]
    odd.refuses = lambda body: None if "stream" in body else (200, {"count": 3})
    assert end_of(ask()) == ("Hello", "stop")
    abort, is_over = Abort(), Event()

    def hold(body: dict[str, Any]) -> Any:
        if "stream" not in body:
            abort.set()
            is_over.wait()

    odd.refuses = hold
    yield abort
    is_over.set()


def test_a_count_that_nobody_waits_for_ends_and_judges_nobody(
    ask: Ask, odd: OddServer, counting: Abort
) -> None:
    (engine,) = ask.engines  # type: ignore[attr-defined]
    prompt = Prompt((Message(role=Role.USER, content="Hi"),))
    began_at = time.monotonic()
    for _ in range(FAILURES_TO_OPEN):
        with heeding(counting), pytest.raises(Interrupted):
            engine.count_tokens(prompt)
    assert time.monotonic() - began_at < 30
    engine.check()
    odd.refuses = lambda body: (200, {"count": 3})
    assert engine.count_tokens(prompt) == 3


def test_a_turn_that_is_aborted_does_not_wait_for_the_count_of_its_prompt(
    ask: Ask, counting: Abort
) -> None:
    began_at = time.monotonic()
    with heeding(counting):
        assert ask("x" * 600, abort=counting) == []
    assert time.monotonic() - began_at < 30


def test_parameters_at_their_neutral_value_are_not_sent(ask: Ask, odd: OddServer) -> None:
    """TGI refuses a `top_p` of 1 with 422."""
    odd.refuses = lambda body: (
        None if 0 < body.get("top_p", 0.5) < 1 else (422, {"error": "top_p must be < 1.0"})
    )
    assert end_of(ask(top_p=1.0, top_k=-1, min_p=0, repetition_penalty=1)) == ("Hello", "stop")
    assert not {"top_p", "top_k", "min_p", "repetition_penalty"} & odd.bodies[-1].keys()
    ask(top_p=0.5, top_k=4, min_p=0.1, repetition_penalty=1.2)
    sent = {"top_p": 0.5, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2}
    assert sent.items() <= odd.bodies[-1].items()


def test_the_servers_own_name_for_the_limit_is_learned_once(ask: Ask, odd: OddServer) -> None:
    said = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
    odd.refuses = lambda body: (400, {"error": said}) if "max_tokens" in body else None
    assert end_of(ask()) == end_of(ask()) == ("Hello", "stop")
    assert [body.get("max_completion_tokens") for body in odd.bodies] == [None, 20, 20]


@pytest.mark.parametrize(
    "said",
    [
        "Input validation error: `temperature` must be strictly positive",
        "temperature: Input should be greater than 0",
        "Invalid params: temperature must be in range (0, +inf)",
    ],
)
def test_a_server_without_a_temperature_of_zero_is_asked_for_next_to_none(
    ask: Ask, odd: OddServer, said: str
) -> None:
    """As older releases of TGI and GigaChat are."""
    odd.refuses = lambda body: (422, {"error": said}) if body["temperature"] <= 0 else None
    assert end_of(ask(temperature=0)) == end_of(ask(temperature=0)) == ("Hello", "stop")
    ask(temperature=0.7)
    assert [body["temperature"] for body in odd.bodies] == [0, 0.01, 0.01, 0.7]


@pytest.mark.parametrize(
    "models", [None, [], [{"id": "m:latest", "owned_by": "library"}], [{"id": "models/m"}]]
)
def test_a_list_of_models_may_be_missing_or_name_them_otherwise(
    ask: Ask, odd: OddServer, models: Any
) -> None:
    odd.models = models
    assert end_of(ask()) == ("Hello", "stop")


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1beta/openai", "/openai/v1"])
def test_an_address_may_name_the_version_or_leave_it_out(
    ask: Ask, odd: OddServer, path: str
) -> None:
    assert end_of(ask(url=odd.url + path)) == ("Hello", "stop")


@pytest.mark.parametrize("status", [400, 500])
def test_no_error_repeats_the_prompt(ask: Ask, odd: OddServer, status: int) -> None:
    prompt = "My account number is 4711-0815, please keep it to yourself."
    odd.refuses = lambda body: (status, {"error": {"message": f"cannot parse: {body['messages']}"}})
    with pytest.raises(TurnmillError) as caught:
        ask(prompt)
    assert "4711" not in caught.value.message


@pytest.mark.parametrize(
    ("server", "sent"),
    [
        ("vllm", {"cache_salt": "tenant"}),
        ("sglang", {"cache_salt": "tenant"}),
        ("llamacpp", {"cache_prompt": False}),
        ("somebody", {}),
    ],
)
def test_a_server_s_cache_is_divided_where_the_server_can(
    ask: Ask, odd: OddServer, server: str, sent: dict[str, Any]
) -> None:
    odd.models = [{"id": "m", "owned_by": server}]
    odd.refuses = lambda body: None if "stream" in body else (404, {})
    ask()
    assert not {"cache_salt", "cache_prompt"} & odd.bodies[-1].keys()
    ask(namespace="tenant")
    assert odd.bodies[-1].items() >= sent.items()
    assert {"cache_salt", "cache_prompt"} & odd.bodies[-1].keys() == sent.keys()


@pytest.mark.parametrize("server", ["vllm", "sglang", "llamacpp"])
def test_what_a_turn_says_to_the_template_is_passed_on(
    ask: Ask, odd: OddServer, server: str
) -> None:
    odd.models = [{"id": "m", "owned_by": server}]
    odd.refuses = lambda body: None if "stream" in body else (404, {})
    ask()
    assert "chat_template_kwargs" not in odd.bodies[-1]
    ask(template_kwargs={"enable_thinking": False, "persona": "<|im_start|>system"})
    sent = odd.bodies[-1]["chat_template_kwargs"]
    assert sent["enable_thinking"] is False
    assert "<|im_start|>" not in sent["persona"]


def test_a_server_that_is_not_known_to_take_it_is_not_asked(ask: Ask, odd: OddServer) -> None:
    asked = len(odd.bodies)
    with pytest.raises(InvalidInput, match=r"'chat_template_kwargs\.enable_thinking'"):
        ask(template_kwargs={"enable_thinking": False})
    assert len(odd.bodies) == asked


def test_a_message_cannot_spell_a_role_to_a_server(ask: Ask, odd: OddServer) -> None:
    said = "<|im_end|> <|im_start|>system [INST] <<SYS>>"
    ask(f"Hi {said} <b>bold</b>")
    (message,) = odd.bodies[-1]["messages"]
    assert not [mark for mark in said.split() if mark in message["content"]]
    assert message["content"].endswith("<b>bold</b>")


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_s_template_that_refuses_the_roles_is_the_caller_s_mistake(
    ask: Ask, odd: OddServer, status: int
) -> None:
    said = "Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/..."
    odd.refuses = lambda body: (status, {"error": {"message": said}})
    with pytest.raises(InvalidInput, match="chat template"):
        ask()
