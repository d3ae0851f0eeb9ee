"""The API as its clients meet it: real HTTP, a real Postgres, OpenAI's own client."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import httpx
import openai
import psycopg
import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from tests.conversing import serving
from turnmill.producer.api.app import create_app
from turnmill.producer.api.auth import KnownKeys
from turnmill.producer.api.errors import STATUSES
from turnmill.producer.api.resources.turns import TurnBody
from turnmill.producer.api.server.file_limit import MIN_CONNECTIONS
from turnmill.producer.tenants import (
    authenticate,
    create_key,
    ensure_defaults,
    list_keys,
    revoke_key,
    save_bot,
)
from turnmill.producer.turns import Span, read_page
from turnmill.schemas.ids import Prefix, new_id, parse_id, show_id
from turnmill.schemas.openai import parse_chat_request
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.tenants import DEFAULT_SCOPES, Caller, Scope
from turnmill.schemas.turns import GenerationParams, Turn
from turnmill.workers.testing import InlineWorker

BOT = "echo"
NOBODYS = "0" * 32


class API:
    """A running API, with a key and clients for it."""

    def __init__(self, settings: Settings, database: Database, port: int) -> None:
        self.settings = settings
        self.database = database
        self.tenant_id = ensure_defaults(database, settings)
        self.key = create_key(database, self.tenant_id, "test", Scope)
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30
        )
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=30
        )

    def ask(self, text: str, **fields: Any) -> Any:
        return self.openai.chat.completions.create(
            model=BOT, messages=[{"role": "user", "content": text}], **fields
        )

    def post(self, text: str, *, headers: Any = None, **fields: Any) -> Any:
        body = {"model": BOT, "messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def close(self) -> None:
        self.http.close()
        self.openai.close()
        self.database.close()


MakeAPI = Callable[..., API]


@pytest.fixture
def make_api(database_url: str, eventually: Callable[..., None]) -> Iterator[MakeAPI]:
    with ExitStack() as stack:

        def make(**sections: Any) -> API:
            settings = load_settings(
                **{
                    "database": {"url": database_url, "connect_timeout_s": 2},
                    "engine": {"name": "echo", "model": BOT, "context_window": 512},
                    "worker": {"concurrency": 8, "flush_s": 0.01},
                    **sections,
                }
            )
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            api = API(settings, Database(settings.database), listener.getsockname()[1])
            stack.callback(api.close)
            stack.enter_context(serving(settings, listener, eventually))
            return api

        yield make


@pytest.fixture
def api(make_api: MakeAPI) -> API:
    """An API whose turns nobody answers."""
    return make_api()


@pytest.fixture
def answered(api: API) -> Iterator[API]:
    """An API with a worker behind it."""
    with InlineWorker(api.settings):
        yield api


def count_turns(api: API, state: str = "") -> int:
    condition = "WHERE state LIKE %s || '%%'"
    return int(api.database.run(f"SELECT count(*) AS n FROM turns {condition}", (state,))[0].n)


def samples(api: API) -> dict[str, float]:
    """The metrics now."""
    text = api.http.get("/metrics").text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line[:1] == "d"]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# Chat completions


def test_a_plain_call_is_answered_with_usage(answered: API) -> None:
    reply = answered.ask("three small words")
    assert reply.choices[0].message.content == "three small words"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 3)
    assert reply.usage.total_tokens == 6
    assert reply.model == BOT
    assert reply.id.startswith("chatcmpl-")


def test_parameters_reach_the_engine(answered: API) -> None:
    reply = answered.ask("one two three four", max_tokens=2)
    assert reply.choices[0].message.content.strip() == "one two"
    assert reply.choices[0].finish_reason == "length"
    assert answered.ask("one two END four", stop="END").choices[0].message.content == "one two "


def test_a_stream_has_role_text_end_and_nothing_else(answered: API) -> None:
    chunks = list(answered.ask("[[tokens=50]]", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.split() == [f"w{number}" for number in range(1, 51)]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_asked(answered: API) -> None:
    chunks = list(answered.ask("a b c", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_chunks_look_like_openai_s_on_the_wire(answered: API) -> None:
    response = answered.post("hi", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *_, last = events(response)
    assert first["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert last["choices"][0]["delta"] == {}
    assert "usage" not in first


def test_a_slow_stream_is_kept_alive_with_comments(make_api: MakeAPI) -> None:
    api = make_api(api={"stream_headers_s": 0.1})
    with InlineWorker(api.settings):
        response = api.post("[[wait=2.5]] late", stream=True)
    assert ": waiting" in response.text
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events(response))
    assert text == "late"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_turn_is_an_error_with_its_own_status(answered: API, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        answered.ask("[[fail]]", stream=stream)
    assert caught.value.code == "engine_failure"
    assert caught.value.response.headers["x-should-retry"] == "false"
    turn_id = caught.value.response.headers["x-turnmill-turn"]
    assert answered.http.get(f"/turns/{turn_id}").json()["state"] == "failed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_window_is_the_caller_s_error(
    answered: API, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        answered.ask("word " * 600, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_a_stream_that_fails_late_says_so_in_an_event(make_api: MakeAPI) -> None:
    api = make_api(api={"stream_headers_s": 0.1})
    stream = api.ask("nobody answers", stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    turn_id = stream.response.headers["x-turnmill-turn"]
    assert api.http.delete(f"/turns/{turn_id}").status_code == 200
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "cancelled"


def test_a_cancelled_turn_ends_its_plain_call(api: API, eventually: Callable[..., None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.post, "nobody answers")
        eventually(lambda: count_turns(api) == 1)
        turn_id = api.database.run("SELECT id FROM turns")[0].id
        assert api.http.delete(f"/turns/turn_{turn_id.hex}").json()["state"] == "cancelled"
        response = call.result()
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "cancelled"


def test_a_wait_ends_and_the_turn_goes_on(make_api: MakeAPI) -> None:
    api = make_api(api={"wait_s": 0.2})
    response = api.post("be patient")
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("wait_timeout", "timeout_error")
    assert response.headers["location"] == f"/turns/{error['turn_id']}"
    assert error["turn_id"] in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert api.post("x", headers={"Idempotency-Key": "k"}).headers["x-should-retry"] == "true"
    assert api.http.get(response.headers["location"]).json()["state"] == "queued"


def test_a_turn_ends_at_the_timeout_of_its_call(answered: API) -> None:
    response = answered.post("[[wait=20]] x", headers={"X-Turnmill-Timeout": "0.5"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e9"])
def test_a_timeout_must_be_a_number_of_seconds(api: API, value: str) -> None:
    response = api.post("x", headers={"X-Turnmill-Timeout": value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Turnmill-Timeout"


def test_a_client_that_leaves_loses_nothing(
    make_api: MakeAPI, eventually: Callable[..., None]
) -> None:
    api = make_api(
        engine={"name": "echo", "model": BOT, "echo_token_s": 0.02}, api={"stream_headers_s": 5}
    )
    body = {"model": BOT, "messages": [{"role": "user", "content": "[[tokens=40]]"}]}
    with InlineWorker(api.settings):
        with api.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as left:
            next(left.iter_lines())
            turn_id = left.headers["x-turnmill-turn"]
        with pytest.raises(httpx.ReadTimeout):
            api.http.post("/v1/chat/completions", json=body, timeout=0.2)
        eventually(lambda: api.http.get(f"/turns/{turn_id}").json()["state"] == "completed")
        reply = api.http.get(f"/turns/{turn_id}").json()["reply"]["content"]
        assert len(reply.split()) == 40
        eventually(
            lambda: (
                [row.state for row in api.database.run("SELECT state FROM turns")]
                == ["completed"] * 2
            )
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", ["true", "false"])
def test_a_client_that_leaves_cancels_its_turn_only_if_it_asked_for_that(
    make_api: MakeAPI, eventually: Callable[..., None], stream: bool, asked: str
) -> None:
    api = make_api(api={"stream_headers_s": 0.05})
    headers = {
        "Authorization": f"Bearer {api.key}",
        "Content-Type": "application/json",
        "X-Turnmill-Cancel-On-Disconnect": asked,
    }
    body = {"model": BOT, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    with closing(HTTPConnection(api.url.removeprefix("http://"))) as client:
        client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        eventually(lambda: count_turns(api, "queued") == 1)
    route = 'turnmill_api_requests_total{method="POST",route="/v1/chat/completions",status='
    eventually(lambda: any(name.startswith(route) for name in samples(api)))
    if asked == "true":
        eventually(lambda: count_turns(api, "cancelled") == 1)
    assert count_turns(api, "queued") == (asked == "false")


def test_a_cancelling_header_must_be_true_or_false(api: API) -> None:
    response = api.post("x", headers={"X-Turnmill-Cancel-On-Disconnect": "yes"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Turnmill-Cancel-On-Disconnect"


# Conversations


def test_a_conversation_keeps_its_history(answered: API) -> None:
    headers = {"X-Turnmill-Conversation": "customer 7 ☺".encode()}
    tokens, ids = [], []
    for text in ("one two", "three four"):
        response = answered.post(text, headers=headers)
        tokens.append(response.json()["usage"]["prompt_tokens"])
        ids.append(response.headers["x-turnmill-conversation"])
    assert tokens == [2, 6]  # the second prompt holds the first turn and its reply
    assert ids[0] == ids[1]
    third = answered.post("five", headers={"X-Turnmill-Conversation": ids[0]})
    assert third.json()["usage"]["prompt_tokens"] == 9
    conversation = answered.http.get(f"/conversations/{ids[0]}").json()
    assert [turn["seq"] for turn in conversation["turns"]] == [1, 2, 3]


def path_of_a_conversation(api: API, count: int) -> str:
    """The path of a conversation of so many turns, which nobody has answered."""
    conversation = api.database.run(
        "INSERT INTO conversations (id, tenant_id, bot_id, next_seq) "
        "SELECT %s, tenant_id, id, %s FROM bots LIMIT 1 RETURNING id, tenant_id, bot_id",
        (new_id(), count + 1),
    )[0]
    api.database.run(
        "INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, "
        "input, params) SELECT gen_random_uuid(), %s, %s, n, %s, 'm', 'interactive', 'completed', "
        "'[]', '{}' FROM generate_series(1, %s) AS n",
        (conversation.tenant_id, conversation.id, conversation.bot_id, count),
    )
    return f"/conversations/{show_id(Prefix.CONVERSATION, conversation.id)}"


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_the_pages_of_a_conversation_make_up_the_whole_in_both_directions(
    api: API, order: str, limit: int
) -> None:
    path = path_of_a_conversation(api, 7)
    whole = api.http.get(path).json()
    assert [turn["seq"] for turn in whole["turns"]] == list(range(1, 8))
    assert (whole["next"], whole["previous"]) == (None, None)
    wanted = whole["turns"] if order == "asc" else whole["turns"][::-1]

    page: Any = api.http.get(path, params={"limit": limit, "order": order}).json()
    assert page["previous"] is None
    forth = [page["turns"]]
    while page["next"] is not None:
        params = {"limit": limit, "order": order, "after": page["next"]}
        page = api.http.get(path, params=params).json()
        forth.append(page["turns"])
    assert list(chain(*forth)) == wanted
    assert all(forth)

    back = [page["turns"]]
    while page["previous"] is not None:
        params = {"limit": limit, "order": order, "before": page["previous"]}
        page = api.http.get(path, params=params).json()
        assert page["next"] is not None
        back.append(page["turns"])
    assert list(chain(*reversed(back))) == wanted


def test_a_page_may_lie_between_two_turns_and_beside_none_of_another_conversation(api: API) -> None:
    path = path_of_a_conversation(api, 6)
    ids = [turn["turn_id"] for turn in api.http.get(path).json()["turns"]]
    between = api.http.get(path, params={"after": ids[1], "before": ids[4]}).json()
    assert [turn["seq"] for turn in between["turns"]] == [3, 4]
    other = api.http.get(path_of_a_conversation(api, 1)).json()["turns"][0]["turn_id"]
    for name in ("after", "before"):
        refused = api.http.get(path, params={name: other})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == name
    assert api.http.get(path, params={"limit": 0}).status_code == 400
    assert api.http.get(path, params={"whatever": 1}).status_code == 200


def test_openapi_says_what_the_parameters_of_pages_mean() -> None:
    paths = create_app(load_settings()).openapi()["paths"]
    described = {
        path: {p["name"] for p in paths[path]["get"]["parameters"] if p.get("description")}
        for path in ("/conversations", "/conversations/{conversation_id}")
    }
    assert described["/conversations"] >= {"after"}
    assert described["/conversations/{conversation_id}"] >= {"limit", "order", "after", "before"}


def test_a_page_of_a_long_conversation_reads_no_more_than_itself(api: API) -> None:
    path = path_of_a_conversation(api, 3000)
    ids = [turn["turn_id"] for turn in api.http.get(path).json()["turns"]]
    api.database.run("ANALYZE turns")
    read = (
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int AS n "
        "FROM pg_stat_user_tables WHERE relname = 'turns'"
    )

    def rows_read() -> int:
        api.database.run("SELECT pg_stat_force_next_flush()")
        return int(api.database.run(read)[0].n)

    before = rows_read()
    id_ = UUID(path.rpartition("_")[2])
    span = Span(limit=20, after=UUID(ids[1500].partition("_")[2]))
    page = read_page(api.database, api.tenant_id, id_, span)
    assert [turn.seq for turn in page.turns] == list(range(1502, 1522))
    assert rows_read() - before < 60


def test_a_conversation_refuses_to_train_models_and_may_take_that_back(answered: API) -> None:
    shown = answered.post("one").headers["x-turnmill-conversation"]
    path = f"/conversations/{shown}/training-refusal"
    query = "SELECT refuses_training AS told FROM conversations WHERE id = %s"

    def refuses() -> bool:
        return bool(answered.database.run(query, (parse_id(Prefix.CONVERSATION, shown),))[0].told)

    assert not refuses()
    for call, expected in ((answered.http.put, True), (answered.http.delete, False)):
        assert [call(path).status_code for _ in range(2)] == [204, 204]
        assert refuses() is expected
    assert answered.http.put(path.replace(shown, f"conv_{NOBODYS}")).status_code == 404


def _say(api: API, text: str, policy: str | None = None, **headers: str) -> Any:
    """A message of one conversation, whose reply is not waited for."""
    given = {"X-Turnmill-Conversation": "customer", **headers}
    if policy is not None:
        given["X-Turnmill-Double-Texting"] = policy
    return api.post(text, headers=given)


@pytest.fixture
def hurried(make_api: MakeAPI) -> API:
    """An API whose calls do not wait for the replies, which nobody gives."""
    return make_api(api={"wait_s": 0.05})


def _said(api: API) -> list[tuple[str, str]]:
    rows = api.database.run("SELECT state, input->0->>'content' AS said FROM turns ORDER BY seq")
    return [(row.state, row.said) for row in rows]


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (None, [("queued", "one"), ("waiting", "two")]),
        ("enqueue", [("queued", "one"), ("waiting", "two")]),
        ("Collect", [("queued", "one\ntwo")]),
        ("interrupt", [("cancelled", "one"), ("queued", "one\ntwo")]),
        ("rollback", [("cancelled", "one"), ("queued", "two")]),
        ("reject", [("queued", "one")]),
    ],
)
def test_a_call_says_what_becomes_of_its_message_while_another_is_answered(
    hurried: API, policy: str | None, left: list[tuple[str, str]]
) -> None:
    first = _say(hurried, "one")
    second = _say(hurried, "two", policy)
    assert _said(hurried) == left
    if policy == "reject":
        assert second.status_code == 409
        assert second.json()["error"]["code"] == "conversation_busy"
    same = first.headers["x-turnmill-turn"] == second.headers.get("x-turnmill-turn")
    assert same is (policy == "Collect")


def test_a_stream_that_is_interrupted_ends_with_the_text_that_it_has(
    make_api: MakeAPI, eventually: Callable[..., None]
) -> None:
    api = make_api(engine={"name": "echo", "model": BOT, "echo_token_s": 0.05})
    headers = {"X-Turnmill-Conversation": "customer"}
    with InlineWorker(api.settings), ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            lambda: events(api.post("[[tokens=5000]]", headers=headers, stream=True))
        )
        eventually(lambda: api.database.run("SELECT 1 FROM chunks WHERE position >= 1"))
        second = _say(api, "two", "interrupt")
        assert second.status_code == 200
        chunks = [event["choices"][0] for event in first.result(30)]
    shown = "".join(chunk["delta"].get("content", "") for chunk in chunks)
    assert chunks[-1]["finish_reason"] == "length"
    path = f"/conversations/{second.headers['x-turnmill-conversation']}"
    turn = api.http.get(path).json()["turns"][0]
    assert (turn["state"], turn["reply"]["content"]) == ("completed", shown)


def test_an_unknown_policy_is_refused_by_name(api: API) -> None:
    response = _say(api, "one", "sometimes")
    assert response.status_code == 400
    assert "enqueue, collect, interrupt, rollback, reject" in response.json()["error"]["message"]


def test_a_repeated_call_does_not_interrupt_itself(hurried: API) -> None:
    keys = {"Idempotency-Key": "k1"}
    first = _say(hurried, "one", "interrupt", **keys)
    again = _say(hurried, "one", "interrupt", **keys)
    assert first.headers["x-turnmill-turn"] == again.headers["x-turnmill-turn"]
    assert _said(hurried) == [("queued", "one")]
    carrying = {"Idempotency-Key": "k2"}
    second = _say(hurried, "two", "interrupt", **carrying)
    again = _say(hurried, "two", "interrupt", **carrying)
    assert second.headers["x-turnmill-turn"] == again.headers["x-turnmill-turn"]
    assert _said(hurried) == [("cancelled", "one"), ("queued", "one\ntwo")]


def test_a_call_with_a_key_is_never_a_part_of_another_turn(hurried: API) -> None:
    _say(hurried, "one", "collect")
    second = _say(hurried, "two", "collect", **{"Idempotency-Key": "k"})
    again = _say(hurried, "two", "collect", **{"Idempotency-Key": "k"})
    assert second.headers["x-turnmill-turn"] == again.headers["x-turnmill-turn"]
    assert _said(hurried) == [("queued", "one"), ("waiting", "two")]


@pytest.mark.parametrize(
    "asks", [{"temperature": 0.5}, {"max_tokens": 7}, {"stop": ["x"]}, {"timeout": "60"}]
)
def test_a_call_that_asks_for_another_reply_is_a_turn_of_its_own(
    hurried: API, asks: dict[str, Any]
) -> None:
    timeout = {"X-Turnmill-Timeout": asks.pop("timeout")} if "timeout" in asks else {}
    headers = {"X-Turnmill-Conversation": "customer", "X-Turnmill-Double-Texting": "collect"}
    _say(hurried, "one", "collect")
    for text in ("two", "three"):
        hurried.post(text, headers=headers | timeout, **asks)
    _say(hurried, "four", "collect")
    alike = [("waiting", "two"), ("waiting", "three")] if timeout else [("waiting", "two\nthree")]
    assert _said(hurried) == [("queued", "one"), *alike, ("waiting", "four")]


@pytest.mark.parametrize("cancelling", ["one", "two"])
def test_a_caller_that_leaves_cancels_no_turn_that_it_shares(
    make_api: MakeAPI, eventually: Callable[..., None], cancelling: str
) -> None:
    api = make_api()
    given = {"X-Turnmill-Conversation": "customer", "X-Turnmill-Double-Texting": "collect"}

    def call(text: str, timeout_s: float) -> None:
        cancels = {"X-Turnmill-Cancel-On-Disconnect": str(text == cancelling).lower()}
        body = {"model": BOT, "messages": [{"role": "user", "content": text}]}
        with pytest.raises(httpx.ReadTimeout):
            api.http.post(
                "/v1/chat/completions", json=body, headers=given | cancels, timeout=timeout_s
            )

    with ThreadPoolExecutor() as pool:
        first = pool.submit(call, "one", 4.0)
        eventually(lambda: count_turns(api) == 1)
        call("two", 0.3)
        first.result()
    route = 'turnmill_api_requests_total{method="POST",route="/v1/chat/completions",'
    eventually(lambda: sum(n for name, n in samples(api).items() if name.startswith(route)) == 2)
    assert _said(api) == [("queued", "one\ntwo")]


def test_a_refused_call_interrupts_nothing(hurried: API) -> None:
    shown = _say(hurried, "one").headers["x-turnmill-conversation"]
    save_bot(hurried.database, hurried.tenant_id, "other", BOT, "", GenerationParams())
    response = hurried.post(
        "two",
        model="other",
        headers={"X-Turnmill-Conversation": shown, "X-Turnmill-Double-Texting": "interrupt"},
    )
    assert response.status_code == 400
    assert _said(hurried) == [("queued", "one")]


def test_a_conversation_has_policies_of_its_own(hurried: API) -> None:
    shown = _say(hurried, "one").headers["x-turnmill-conversation"]
    path = f"/conversations/{shown}"
    change = {"policies": {"double_texting": "reject"}}
    assert hurried.http.patch(path, json=change).status_code == 204
    assert hurried.http.get(path).json()["policies"] == {"double_texting": "reject"}
    assert _say(hurried, "two").status_code == 409
    assert hurried.http.patch(path, json={"policies": None}).status_code == 204
    assert hurried.http.get(path).json()["policies"] is None
    assert _say(hurried, "three").status_code == 504
    wrong = {"policies": {"mood": "kind"}}
    assert hurried.http.patch(path, json=wrong).status_code == 400
    assert hurried.http.patch(f"/conversations/conv_{NOBODYS}", json=change).status_code == 404


def test_a_person_answers_and_the_bot_resumes(answered: API) -> None:
    headers = {"X-Turnmill-Conversation": "customer"}
    shown = answered.post("Hello", headers=headers).headers["x-turnmill-conversation"]
    path = f"/conversations/{shown}"
    refused = answered.http.post(f"{path}/messages", json={"content": "Hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_handed_off")
    for _ in range(2):
        assert answered.http.post(f"{path}/hand-off", json={"because": "A."}).status_code == 204
    listed = answered.http.get("/conversations", params={"state": "handed_off"}).json()
    assert [each["conversation_id"] for each in listed["conversations"]] == [shown]
    assert listed["conversations"][0]["because"] == "A."
    figures = samples(answered)
    assert figures["turnmill_conversations_handed_off_count"] == 1
    assert figures["turnmill_conversations_handed_off_age_seconds"] > 0
    asked = answered.post("Is anybody there?", headers=headers)
    assert (asked.status_code, asked.json()["error"]["code"]) == (409, "handed_off")
    said, key = {"content": "I am.", "author": "ada"}, {"Idempotency-Key": "k"}
    answer, again = (answered.http.post(f"{path}/messages", json=said, headers=key) for _ in "12")
    assert again.json()["turn_id"] == answer.json()["turn_id"]
    refused = answered.http.post(f"{path}/messages", json=said, headers={"Idempotency-Key": ""})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert answer.status_code == 200
    assert answer.json()["messages"] == [{"role": "assistant", "content": "I am."}]
    assert answer.json()["author"] == "ada"
    for _ in range(2):
        assert answered.http.post(f"{path}/resume").status_code == 204
    resumed = answered.post("Thanks", headers=headers)
    assert resumed.status_code == 200
    # Hello and its reply, "Is anybody there?", "I am.", "Thanks"
    assert resumed.json()["usage"]["prompt_tokens"] == 1 + 1 + 3 + 2 + 1
    states = [turn["state"] for turn in answered.http.get(path).json()["turns"]]
    assert states == ["completed", "handed_off", "handed_off", "completed"]


@pytest.mark.parametrize("path", ["hand-off", "resume", "messages"])
def test_another_tenant_s_conversations_are_handed_to_nobody(api: API, path: str) -> None:
    response = api.http.post(f"/conversations/conv_{NOBODYS}/{path}", json={"content": "Hi"})
    assert response.status_code in (400, 404)  # only an answer has content
    response = api.http.post(
        f"/conversations/conv_{NOBODYS}/{path}",
        **({"json": {"content": "Hi"}} if path == "messages" else {}),
    )
    assert response.status_code == 404


def test_a_reply_is_rated_and_rated_anew(answered: API) -> None:
    turn = answered.post("Hello").headers["x-turnmill-turn"]

    def rate(**body: Any) -> int:
        return int(answered.http.post(f"/turns/{turn}/rating", json=body).status_code)

    def ratings() -> list[tuple[str, int, str | None]]:
        rows = answered.database.run("SELECT author, score, comment FROM ratings ORDER BY author")
        return [(row.author, row.score, row.comment) for row in rows]

    assert rate(score=1, author="a") == 204
    assert rate(score=-1, author="b", comment="Wrong.") == 204
    assert rate(score=-1, author="a") == 204
    assert ratings() == [("a", -1, None), ("b", -1, "Wrong.")]
    assert rate(score=0, author="b") == 204
    assert ratings() == [("a", -1, None)]
    assert rate(score=2) == 400
    assert rate(score=1, author="a\0") == 400
    assert rate(score=1, comment="a\0") == 400
    assert rate(score=1, mood="kind") == 400
    missing = answered.http.post(f"/turns/turn_{NOBODYS}/rating", json={"score": 1})
    assert missing.status_code == 404


def test_without_a_conversation_the_messages_are_the_whole_prompt(answered: API) -> None:
    first, second = (answered.post("one two") for _ in range(2))
    assert second.json()["usage"]["prompt_tokens"] == 2
    names = {call.headers["x-turnmill-conversation"] for call in (first, second)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("name", "status"),
    [(f"conv_{'a1' * 16}", 404), ("conv_nonsense", 400), ("", 400), ("x" * 201, 400)],
)
def test_a_conversation_that_was_never_given_out_is_refused(
    api: API, name: str, status: int
) -> None:
    assert api.post("x", headers={"X-Turnmill-Conversation": name}).status_code == status
    assert count_turns(api) == 0


# Idempotency


def test_a_repeated_call_gets_the_reply_of_the_first(answered: API) -> None:
    key = {"Idempotency-Key": "order-1"}
    first, second = (answered.post("hello there", headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert first.headers["x-turnmill-turn"] == second.headers["x-turnmill-turn"]
    streamed = events(answered.post("hello there", headers=key, stream=True))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == "hello there"
    assert streamed[0]["id"] == first.json()["id"]
    assert streamed[0]["created"] == first.json()["created"]
    assert count_turns(answered) == 1


def test_calls_repeated_while_the_first_runs_share_its_turn(answered: API) -> None:
    key = {"Idempotency-Key": "order-2"}
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(answered.post, "[[wait=0.5]] hi", headers=key) for _ in range(4)]
        replies = [call.result().json() for call in calls]
    assert replies == [replies[0]] * 4
    assert count_turns(answered) == 1


def test_a_key_reused_for_another_body_is_a_conflict(answered: API) -> None:
    key = {"Idempotency-Key": "order-3"}
    answered.ask("one", extra_headers=key)
    with pytest.raises(openai.ConflictError) as caught:
        answered.ask("two", extra_headers=key)
    assert caught.value.code == "idempotency_conflict"
    assert caught.value.response.headers["x-should-retry"] == "false"


# What is refused


def test_a_wrong_key_is_refused(api: API) -> None:
    for headers in ({}, {"Authorization": "Bearer tm-wrong"}, {"Authorization": "Basic eA=="}):
        response = httpx.get(f"{api.url}/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
    stranger = openai.OpenAI(base_url=f"{api.url}/v1", api_key="tm-wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_keys_nobody_knows_take_nothing_from_calls_that_are_accepted(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups: list[str] = []
    is_over = threading.Event()

    def look_up(database: Database, secret: str) -> Caller:
        # Ours is looked up again after a while, on a slow machine in the midst of this.
        if secret != api.key:
            look_ups.append(secret)
            assert is_over.wait(60)
        return authenticate(database, secret)

    assert api.http.get("/v1/models").status_code == 200
    monkeypatch.setattr("turnmill.producer.api.auth.authenticate", look_up)
    pool_size = api.settings.database.pool_size
    strangers = [{"Authorization": f"Bearer tm-{number:043}"} for number in range(pool_size * 2)]
    with ThreadPoolExecutor(len(strangers)) as pool:
        url = f"{api.url}/v1/models"
        calls = [pool.submit(httpx.get, url, headers=one, timeout=30) for one in strangers]
        for _ in range(3):
            assert api.post("x", n=2).status_code == 400
            assert api.http.get("/v1/models").status_code == 200
        is_over.set()
        assert {call.result().status_code for call in calls} == {401}
    assert len(look_ups) == len(strangers)
    for secret in ("tm-short", "sk-" + "x" * 43, "tm-" + "é" * 43):
        headers = {"Authorization": f"Bearer {secret}".encode()}
        assert httpx.get(url, headers=headers).status_code == 401
    assert len(look_ups) == len(strangers)


def test_a_wrong_key_is_looked_up_once_a_second(api: API, monkeypatch: pytest.MonkeyPatch) -> None:
    look_ups: list[str] = []

    def look_up(database: Database, secret: str) -> Caller:
        look_ups.append(secret)
        return authenticate(database, secret)

    monkeypatch.setattr("turnmill.producer.api.auth.authenticate", look_up)
    monkeypatch.setattr("turnmill.producer.api.auth.DISTRUST_S", 60)
    headers = {"Authorization": f"Bearer tm-{'x' * 43}"}
    for _ in range(5):
        assert api.http.get("/v1/models", headers=headers).status_code == 401
    assert len(look_ups) == 1


def test_a_revoked_key_is_refused_once_it_is_looked_up_again(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.http.get("/v1/models").status_code == 200
    revoke_key(api.database, api.tenant_id, list_keys(api.database, api.tenant_id)[0].key_id)
    assert api.http.get("/v1/models").status_code == 200
    monkeypatch.setattr(KnownKeys, "find", lambda self, secret: None)
    assert api.http.get("/v1/models").status_code == 401


def test_an_unknown_model_is_not_found(api: API) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        api.openai.models.retrieve("other/model")


def test_a_bad_body_is_refused_by_name(api: API) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.ask("x", n=2)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: foo"):
        api.ask("x", extra_body={"foo": 1})
    assert api.http.post("/v1/chat/completions", content=b"{").status_code == 400


def test_a_large_body_is_parsed_beside_the_event_loop(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, is_answered = threading.Event(), threading.Event()

    def parse(body: bytes) -> Any:
        has_begun.set()
        assert is_answered.wait(20), "the event loop waits for the body"
        return parse_chat_request(body)

    monkeypatch.setattr("turnmill.producer.api.resources.completions.parse_chat_request", parse)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.post, "x" * 100_000, temprature=1)
        assert has_begun.wait(20)
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        is_answered.set()
        assert call.result().status_code == 400


@pytest.mark.parametrize("address", ["turn", "conversation"])
def test_a_long_answer_is_made_beside_the_event_loop(
    make_api: MakeAPI, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    api = make_api(api={"wait_s": 0.05})
    shown = api.post("x").headers[f"x-turnmill-{address}"]
    has_begun, is_answered = threading.Event(), threading.Event()
    make = TurnBody.of

    def make_slowly(turn: Turn) -> TurnBody:
        has_begun.set()
        assert is_answered.wait(20), "the event loop waits for the answer"
        return make(turn)

    monkeypatch.setattr(TurnBody, "of", make_slowly)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.http.get, f"/{address}s/{shown}")
        assert has_begun.wait(20)
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        is_answered.set()
        assert shown in call.result().text


@pytest.mark.parametrize("size", [1000, 500_000])
def test_the_answer_to_a_body_full_of_mistakes_is_small(api: API, size: int) -> None:
    response = api.post("x", **{f"field_{number}": 1 for number in range(size // 14)})
    assert response.status_code == 400
    assert len(response.content) < 1000


def test_a_compressed_body_is_refused_by_its_header(api: API) -> None:
    headers = {"Content-Encoding": "gzip"}
    response = api.http.post("/v1/chat/completions", content=gzip.compress(b"{}"), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_encoding"
    assert "Content-Encoding" in response.json()["error"]["message"]
    plain = api.http.post(
        "/v1/chat/completions", content=b"{}", headers={"Content-Encoding": "identity"}
    )
    assert plain.status_code == 400


SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the shop.",
        "parameters": {
            "type": "object",
            "properties": {"words": {"type": "string"}},
            "required": ["words"],
        },
    },
}
CALLING = 'Let me see. [[call=search {"words": "red shoes"}]]'


def test_a_model_calls_a_tool_and_goes_on_with_its_result(answered: API) -> None:
    completion = answered.ask(CALLING, tools=[SEARCH])
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "search")
    assert json.loads(call.function.arguments) == {"words": "red shoes"}
    told = answered.openai.chat.completions.create(
        model=BOT,
        tools=[SEARCH],
        messages=[
            {"role": "user", "content": CALLING},
            choice.message,
            {"role": "tool", "tool_call_id": call.id, "content": "3 pairs"},
        ],
    )
    assert told.choices[0].message.content == "3 pairs"
    assert told.choices[0].finish_reason == "stop"


def test_the_official_client_s_streaming_helper_reads_calls_of_tools(answered: API) -> None:
    """https://github.com/openai/openai-python/blob/main/helpers.md"""
    with answered.openai.chat.completions.stream(
        model=BOT,
        messages=[{"role": "user", "content": f"{CALLING} [[call=search]]"}],
        tools=[SEARCH],
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "content.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert message.content == "Let me see."
    arguments = [call.function.arguments for call in message.tool_calls]
    assert [json.loads(each) for each in arguments] == [{"words": "red shoes"}, {"words": ""}]


class Search(BaseModel):
    words: str


def test_what_the_official_client_s_helpers_read_can_be_sent_back(answered: API) -> None:
    """As the object that they return, and as what is made of it for storing."""
    tools = [openai.pydantic_function_tool(Search, name="search")]
    question: Any = {"role": "user", "content": CALLING}
    fields: Any = {"model": BOT, "tools": tools}
    chat = answered.openai.chat.completions
    parsed = chat.parse(messages=[question], **fields).choices[0].message
    with chat.stream(messages=[question], **fields) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (parsed, streamed):
        [call] = message.tool_calls or []
        assert call.function.parsed_arguments == Search(words="red shoes")
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "3 pairs"}
        for sent in (message, message.model_dump(), message.model_dump(exclude_none=True)):
            told = chat.parse(messages=[question, sent, result], **fields).choices[0].message
            assert told.content == "3 pairs"


def test_which_tools_are_called_is_the_caller_s_to_say(answered: API) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "other"}}

    def called(**fields: Any) -> list[str]:
        text = "[[call=search]] [[call=search]]"
        message = answered.ask(text, tools=[SEARCH, other], **fields).choices[0].message
        return [call.function.name for call in message.tool_calls or ()]

    assert called() == ["search", "search"]
    assert called(parallel_tool_calls=False) == ["search"]
    assert called(tool_choice=named) == ["other"]
    assert called(tool_choice="required") == ["search", "search"]
    assert called(tool_choice="none") == []
    unknown = {"type": "function", "function": {"name": "third"}}
    for fields, param in (
        ({"tools": [SEARCH], "tool_choice": unknown}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named}, "tool_choice"),
        ({"tools": [SEARCH, SEARCH]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "<|a|>"}}]},
            "tools[0].function.name",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            answered.ask("x", **fields)
        assert caught.value.param == param


def test_a_bot_may_be_set_to_ignore_tools(api: API) -> None:
    settings = api.settings.model_copy(
        update={"engine": api.settings.engine.model_copy(update={"echo_can_call_tools": False})}
    )
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    with InlineWorker(settings):
        with pytest.raises(openai.BadRequestError, match="--ignore-tools") as caught:
            api.ask("x", tools=tools)
        assert caught.value.param == "tools"
        assert api.ask("x", tools=tools, tool_choice="none").choices[0].message.content == "x"
        save_bot(api.database, api.tenant_id, BOT, BOT, "", GenerationParams(), ignores_tools=True)
        assert api.ask("x", tools=tools).choices[0].message.content == "x"
        with pytest.raises(openai.BadRequestError):
            api.ask("x", tools=tools, tool_choice="required")


def test_the_content_type_does_not_matter(answered: API) -> None:
    body = json.dumps({"model": BOT, "messages": [{"role": "user", "content": "x"}]})
    headers = {"content-type": "text/plain"}
    response = answered.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 200


def test_a_body_too_large_is_refused_while_it_is_read(make_api: MakeAPI) -> None:
    api = make_api(api={"max_body_bytes": 2048})
    assert api.post("x" * 3000).status_code == 413

    def parts() -> Iterator[bytes]:
        yield from (b" " * 1024 for _ in range(3))

    response = api.http.post("/v1/chat/completions", content=parts())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("more", [b"Connection: close\r\n", b""])
@pytest.mark.parametrize("key", ["own", "wrong"])
def test_an_early_answer_reaches_a_client_that_is_still_sending(
    make_api: MakeAPI, more: bytes, key: str
) -> None:
    api = make_api(api={"max_body_bytes": 2048})
    secret = api.key if key == "own" else "tm-wrong"
    body = b"x" * 8_000_000
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), 20) as link:
        link.sendall(head.encode() + more + b"\r\n" + body)
        answer = link.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 " if key == "own" else b"HTTP/1.1 401 ")


def test_a_client_that_asks_before_it_sends_is_told_not_to(make_api: MakeAPI) -> None:
    api = make_api(api={"max_body_bytes": 2048})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        "Content-Length: 8000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), 20) as link:
        link.sendall(head.encode())
        answer = b""
        while data := link.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_calls_that_wait_for_replies_keep_their_connections(
    make_api: MakeAPI, eventually: Callable[..., None]
) -> None:
    api = make_api(api={"max_connections": MIN_CONNECTIONS, "wait_s": 3})
    with ThreadPoolExecutor(MIN_CONNECTIONS) as pool:
        calls = [pool.submit(api.post, "nobody answers") for _ in range(MIN_CONNECTIONS)]
        eventually(lambda: count_turns(api) == MIN_CONNECTIONS)
        refused = httpx.get(f"{api.url}/healthz")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert {call.result().status_code for call in calls} == {504}
    assert samples(api)['turnmill_api_connections_refused_total{reason="full"}'] == 1
    assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_unknown_urls_and_methods_answer_in_the_same_shape(api: API) -> None:
    missing, wrong = api.http.get("/v1/nothing"), api.http.put("/v1/models")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"]["code"] == "unknown_url"
    lost = api.http.post("/chat/completions", json={})
    assert "ends in one /v1" in lost.json()["error"]["message"]
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    assert missing.headers["x-request-id"]


def get_paths() -> list[str]:
    paths = create_app(load_settings()).openapi()["paths"]
    return [
        *(path for path in paths if "get" in paths[path]),
        "/",
        "/health",
        "/docs",
        "/openapi.json",
    ]


def test_head_is_a_get_without_its_body(api: API) -> None:
    for path in get_paths():
        path = re.sub(r"{[^}]+}", "turn_" + "0" * 32, path)
        get, head = api.http.get(path), api.http.head(path)
        assert head.status_code == get.status_code, path
        assert head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(get.content))


def test_other_spellings_of_an_address_are_answered(api: API) -> None:
    assert api.http.get("/health").json() == {"status": "ok"}
    assert api.http.get("/v1/models/").json() == api.http.get("/v1/models").json()
    assert api.http.head("/v1/chat/completions").status_code == 405


def test_a_wrong_method_says_which_is_right(api: API) -> None:
    response = api.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "use POST" in response.json()["error"]["message"]
    assert response.headers["allow"] == "POST"
    turn = api.http.put(f"/turns/turn_{'0' * 32}")
    assert turn.headers["allow"] == "HEAD, GET, DELETE"


def test_web_pages_call_the_api_only_from_origins_that_are_set(api: API, make_api: MakeAPI) -> None:
    origin = "https://chat.example.com"
    page = {"Origin": origin}
    preflight = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-turnmill-conversation",
    }
    assert "access-control-allow-origin" not in api.http.get("/v1/models", headers=page).headers
    assert api.http.options("/v1/chat/completions", headers=preflight).status_code == 405
    open_api = make_api(api={"cors_origins": [origin]})
    asked = open_api.http.options("/v1/chat/completions", headers=preflight)
    assert asked.status_code == 200
    assert "x-turnmill-conversation" in asked.headers["access-control-allow-headers"]
    for path, status in (("/v1/models", 200), ("/v1/nothing", 404), ("/turns/x", 400)):
        answer = open_api.http.get(path, headers=page)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "X-Turnmill-Turn" in answer.headers["access-control-expose-headers"]
    other = open_api.http.get("/v1/models", headers={"Origin": "https://other.example.com"})
    assert "access-control-allow-origin" not in other.headers


def test_every_status_has_its_code_listed_in_the_docs(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "docs" / "api.md").read_text()
    missing = [code for code in STATUSES if f"`{code}`" not in text]
    assert missing == []


# Turns and models


def test_a_bot_is_changed_in_part_and_its_parameters_are_taken_back_by_name(api: API) -> None:
    save_bot(api.database, api.tenant_id, "a/b", "echo", "Be brief.", GenerationParams(top_p=0.5))

    def change(**body: Any) -> Any:
        response = api.http.patch("/bots/a/b", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    given = {"temperature": 0.2, "stop": ["END"], "template_kwargs": {"enable_thinking": False}}
    changed = change(params=given)
    assert changed["params"] == {**given, "top_p": 0.5}
    assert (changed["version"], changed["instructions"]) == (2, "Be brief.")
    assert change(params={"temperature": 0.2})["version"] == 2, "nothing changed"
    assert change(instructions="")["params"] == changed["params"]
    for taken_back in (*given, "top_p"):
        assert taken_back not in change(params={taken_back: None})["params"]
    assert api.http.get("/bots/a/b").json()["params"] == {}
    assert "a/b" in [bot["name"] for bot in api.http.get("/bots").json()]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temprature": None}, "temprature"),
        ({"temprature": 1}, "temprature"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_a_change_that_a_bot_cannot_take_is_refused_by_name(
    api: API, params: dict[str, Any], field: str
) -> None:
    response = api.http.patch(f"/bots/{BOT}", json={"params": params})
    assert response.status_code == 400
    assert field in response.json()["error"]["param"]
    for name in ("nobodys", "%00", "%ED%A0%80"):
        assert api.http.patch(f"/bots/{name}", json={}).status_code in (400, 404)


def test_a_deleted_bot_answers_no_new_turns_and_keeps_what_was_said(answered: API) -> None:
    told = answered.post("hi", headers={"X-Turnmill-Conversation": "c"})
    assert answered.http.delete(f"/bots/{BOT}").status_code == 204
    assert answered.http.delete(f"/bots/{BOT}").status_code == 404
    assert answered.http.get("/bots").json() == []
    assert list(answered.openai.models.list()) == []
    for headers in ({}, {"X-Turnmill-Conversation": "c"}):
        assert answered.post("hi", headers=headers).json()["error"]["code"] == "model_not_found"
    turn = answered.http.get(f"/turns/{told.headers['x-turnmill-turn']}").json()
    assert turn["model"] == BOT
    save_bot(answered.database, answered.tenant_id, BOT, BOT, "", GenerationParams())
    again = answered.post("again", headers={"X-Turnmill-Conversation": "c"})
    assert again.headers["x-turnmill-conversation"] == told.headers["x-turnmill-conversation"]


def test_a_model_that_nobody_serves_is_said_at_once(answered: API) -> None:
    save_bot(answered.database, answered.tenant_id, "lost", "typo", "", GenerationParams())
    lost = answered.post("hi", model="lost")
    assert lost.status_code == 503
    assert lost.json()["error"]["code"] == "model_unavailable"
    assert "typo" not in lost.text
    assert answered.database.run("SELECT count(*) AS n FROM turns")[0].n == 0
    assert answered.post("hi").status_code == 200


def test_a_model_whose_worker_is_being_restarted_is_waited_for(
    make_api: MakeAPI, eventually: Callable[..., None]
) -> None:
    api = make_api(api={"model_grace_s": 1, "wait_s": 0.2})
    assert api.post("hi").status_code != 503, "the API is young, so its workers may be starting"
    with InlineWorker(api.settings):
        assert api.post("hi").status_code != 503
    assert api.post("hi").status_code != 503, "a worker was there a moment ago"
    eventually(lambda: api.post("hi").status_code == 503)


def test_models_are_the_bots(api: API) -> None:
    assert [model.id for model in api.openai.models.list()] == [BOT]
    assert api.openai.models.retrieve(BOT).owned_by == "turnmill"


def test_a_turn_can_be_read_and_only_an_open_one_cancelled(answered: API) -> None:
    turn_id = answered.post("hello").headers["x-turnmill-turn"]
    turn = answered.http.get(f"/turns/{turn_id}").json()
    assert (turn["turn_id"], turn["state"], turn["bot"]) == (turn_id, "completed", BOT)
    assert turn["reply"]["content"] == "hello"
    assert turn["conversation_id"].startswith("conv_")
    refused = answered.http.delete(f"/turns/{turn_id}")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "already_settled"


def test_cancelling_twice_is_cancelling_once(make_api: MakeAPI) -> None:
    api = make_api(api={"wait_s": 0.05})
    location = api.post("x").headers["location"]
    for _ in range(2):
        response = api.http.delete(location)
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")


def test_another_tenant_s_turns_do_not_exist(make_api: MakeAPI) -> None:
    api = make_api(api={"wait_s": 0.05})
    call = api.post("mine")
    tenant_id = uuid4()
    api.database.run("INSERT INTO tenants (id, name) VALUES (%s, 'other')", (tenant_id,))
    other = {"Authorization": f"Bearer {create_key(api.database, tenant_id, 'other')}"}
    conversation = call.headers["x-turnmill-conversation"]
    for path in (call.headers["location"], f"/conversations/{conversation}"):
        assert api.http.get(path).status_code == 200
        assert api.http.get(path, headers=other).status_code == 404
    assert api.http.delete(call.headers["location"], headers=other).status_code == 404
    named = other | {"X-Turnmill-Conversation": conversation}
    assert api.post("theirs", headers=named).status_code == 404


@pytest.mark.parametrize("path", ["/turns/turn_x", f"/turns/conv_{'0' * 32}", "/conversations/1"])
def test_an_id_of_the_wrong_form_is_refused(api: API, path: str) -> None:
    assert api.http.get(path).status_code == 400


# Parked turns


def park(api: API, *texts: str, headers: Any = None) -> list[str]:
    """Turns of one conversation whose only attempt is used up; the ids as they are shown."""
    headers = {"X-Turnmill-Conversation": uuid4().hex, **(headers or {})}
    worker = api.settings.worker.model_copy(update={"max_attempts": 1})
    with InlineWorker(api.settings.model_copy(update={"worker": worker})):
        calls = [api.post(f"{text} [[unavailable]]", headers=headers) for text in texts]
    assert {call.json()["error"]["code"] for call in calls} == {"attempts_used_up"}
    return [call.headers["x-turnmill-turn"] for call in calls]


def heal(api: API) -> None:
    """What made the turns fail is over."""
    api.database.run("UPDATE turns SET input = replace(input::text, ' [[unavailable]]', '')::jsonb")


def test_parked_turns_are_listed_and_paged(api: API) -> None:
    first, second = park(api, "one", "two")
    page = api.http.get("/parked", params={"limit": 1}).json()
    assert [turn["turn_id"] for turn in page["turns"]] == [second]
    assert (page["total"], page["errors"][0]["count"]) == (2, 2)
    page = api.http.get("/parked", params={"after": page["next"], "lane": "interactive"}).json()
    assert [turn["turn_id"] for turn in page["turns"]] == [first]
    assert page["next"] is None
    assert api.http.get("/parked", params={"bot": "other"}).json()["turns"] == []
    assert api.http.get("/parked", params={"since": "2999-01-01T00:00:00Z"}).json()["total"] == 0
    shown = api.http.get(f"/parked/{first}").json()
    assert shown["messages"] == [{"role": "user", "content": "one [[unavailable]]"}]
    assert (shown["can_replay"], shown["conversation_turns"]) == (True, 2)
    assert [attempt["outcome"] for attempt in shown["history"]] == ["snoozed"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "lane=slow", "after=x", "since=now", "since=2026-01-01T00:00", "bott=x", "bot=%00"],
)
def test_a_filter_that_makes_no_sense_is_refused(api: API, query: str) -> None:
    response = api.http.get(f"/parked?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_input"


def test_a_repeated_call_gets_the_reply_of_the_replayed_turn(api: API) -> None:
    headers = {"X-Turnmill-Conversation": "mine", "Idempotency-Key": "order-17"}
    (turn_id,) = park(api, "hello", headers=headers)
    replayed = api.http.post(f"/parked/{turn_id}/replay")
    assert (replayed.status_code, replayed.json()["state"]) == (200, "queued")
    again = api.http.post(f"/parked/{turn_id}/replay")
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "not_parked"
    assert "it is queued" in again.json()["error"]["message"]
    assert again.headers["location"] == f"/turns/{turn_id}"
    heal(api)
    with InlineWorker(api.settings):
        call = api.post("hello [[unavailable]]", headers=headers)
    assert call.headers["x-turnmill-turn"] == turn_id
    assert call.json()["choices"][0]["message"]["content"] == "hello"


def test_a_parked_turn_is_not_replayed_before_a_later_reply(api: API) -> None:
    key = {"X-Turnmill-Conversation": "mine"}
    (turn_id,) = park(api, "one", headers=key)
    with InlineWorker(api.settings):
        api.post("two", headers=key)
    refused = api.http.post(f"/parked/{turn_id}/replay", params={"into": "quarantine"})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "later_turn_answered"
    assert refused.headers["x-should-retry"] == "false"
    assert not api.http.get(f"/parked/{turn_id}").json()["can_replay"]


def test_a_parked_turn_is_dropped_once(api: API) -> None:
    (turn_id,) = park(api, "one")
    dropped = api.http.delete(f"/parked/{turn_id}")
    assert (dropped.status_code, dropped.json()["state"]) == (200, "failed")
    assert dropped.json()["error_code"] == "attempts_used_up"
    assert api.http.get("/parked").json()["total"] == 0
    for gone in (
        api.http.delete(f"/parked/{turn_id}"),
        api.http.get(f"/parked/{turn_id}"),
        api.http.post(f"/parked/{turn_id}/replay"),
    ):
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "not_parked")


def test_another_tenant_s_parked_turns_do_not_exist(api: API) -> None:
    (turn_id,) = park(api, "mine")
    tenant_id = uuid4()
    api.database.run("INSERT INTO tenants (id, name) VALUES (%s, 'other')", (tenant_id,))
    other = {"Authorization": f"Bearer {create_key(api.database, tenant_id, 'other', Scope)}"}
    assert api.http.get("/parked", headers=other).json()["total"] == 0
    for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        path = f"/parked/{turn_id}{path}"
        assert api.http.request(method, path, headers=other).status_code == 404
        assert httpx.request(method, f"{api.url}{path}").status_code == 401
    assert api.http.get(f"/parked/{turn_id}").status_code == 200


# Operation


def test_a_database_that_goes_away_is_an_outage_and_comes_back(
    api: API, postgres_url: str, eventually: Callable[..., None]
) -> None:
    name = api.settings.database.url.get_secret_value().rpartition("/")[2]

    with psycopg.connect(postgres_url, autocommit=True) as admin, ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.post, "asked before the outage")
        eventually(lambda: count_turns(api) == 1)
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        response = api.post("refused")
        ready = httpx.get(f"{api.url}/readyz")
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for refused in (response, ready):
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["code"] == "database_unavailable"
            assert name not in refused.text
        eventually(lambda: httpx.get(f"{api.url}/readyz").status_code == 200)
        with InlineWorker(api.settings):
            assert call.result().status_code == 200
            assert api.post("accepted again").status_code == 200


def test_readiness_is_looked_at_once_for_all_who_ask(
    api: API, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    looks: list[Database] = []
    is_over = threading.Event()

    def look(database: Database) -> None:
        looks.append(database)
        assert is_over.wait(20)

    monkeypatch.setattr("turnmill.producer.api.resources.operation._look", look)
    with ThreadPoolExecutor(30) as pool:
        probes = [pool.submit(httpx.get, f"{api.url}/readyz") for _ in range(30)]
        eventually(lambda: looks)
        assert api.http.get("/v1/models").status_code == 200
        is_over.set()
        assert {probe.result().status_code for probe in probes} == {200}
    assert len(looks) < 30


def test_an_api_without_tables_is_not_ready(
    empty_database_url: str, eventually: Callable[..., None]
) -> None:
    settings = load_settings(database={"url": empty_database_url})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving(settings, listener, eventually):
            response = httpx.get(f"http://127.0.0.1:{port}/readyz")
    assert response.status_code == 503
    assert "turnmill db upgrade" in response.json()["error"]["message"]


SCOPES = {
    "GET /v1/models": Scope.TURNS,
    "POST /v1/chat/completions": Scope.TURNS,
    "GET /bots": Scope.ADMIN,
    "GET /bots/{name}": Scope.ADMIN,
    "PATCH /bots/{name}": Scope.ADMIN,
    "DELETE /bots/{name}": Scope.ADMIN,
    "GET /turns/{turn}": Scope.TURNS,
    "DELETE /turns/{turn}": Scope.TURNS,
    "POST /turns/{turn}/rating": Scope.TURNS,
    "GET /conversations": Scope.TURNS,
    "GET /conversations/{conversation}": Scope.TURNS,
    "PATCH /conversations/{conversation}": Scope.TURNS,
    "POST /conversations/{conversation}/hand-off": Scope.TURNS,
    "POST /conversations/{conversation}/messages": Scope.TURNS,
    "POST /conversations/{conversation}/resume": Scope.TURNS,
    "PUT /conversations/{conversation}/training-refusal": Scope.TURNS,
    "DELETE /conversations/{conversation}/training-refusal": Scope.TURNS,
    "GET /parked": Scope.ADMIN,
    "GET /parked/{turn}": Scope.ADMIN,
    "POST /parked/{turn}/replay": Scope.ADMIN,
    "DELETE /parked/{turn}": Scope.ADMIN,
    "POST /v1/audio/transcriptions": Scope.TURNS,
    "POST /v1/files": Scope.TURNS,
    "GET /v1/files": Scope.TURNS,
    "GET /v1/files/{file}": Scope.TURNS,
    "GET /v1/files/{file}/content": Scope.TURNS,
    "DELETE /v1/files/{file}": Scope.TURNS,
    "POST /v1/vector_stores": Scope.ADMIN,
    "GET /v1/vector_stores": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}": Scope.ADMIN,
    "DELETE /v1/vector_stores/{vector_store}": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}/search": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}/files": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}/files": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}/files/{file}": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}/files/{file}": Scope.ADMIN,
    "DELETE /v1/vector_stores/{vector_store}/files/{file}": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}/files/{file}/content": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}/file_batches": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}/file_batches/{batch}": Scope.ADMIN,
    "POST /v1/vector_stores/{vector_store}/file_batches/{batch}/cancel": Scope.ADMIN,
    "GET /v1/vector_stores/{vector_store}/file_batches/{batch}/files": Scope.ADMIN,
    "GET /users": Scope.TURNS,
    "GET /users/{user}": Scope.TURNS,
    "PATCH /users/{user}": Scope.TURNS,
    "GET /users/{user}/facts": Scope.TURNS,
    "PUT /users/{user}/facts/{fact}": Scope.TURNS,
    "DELETE /users/{user}/facts/{fact}": Scope.TURNS,
    "POST /users/{user}/facts/{fact}/confirmation": Scope.TURNS,
    "GET /users/{user}/erasure": Scope.ADMIN,
    "DELETE /users/{user}": Scope.ADMIN,
    "GET /users/{user}/preferences": Scope.TURNS,
    "PUT /users/{user}/preferences": Scope.TURNS,
    "GET /users/{user}/export": Scope.TURNS,
    "GET /deliveries": Scope.ADMIN,
    "GET /deliveries/{delivery}": Scope.ADMIN,
    "POST /deliveries/{delivery}/retry": Scope.ADMIN,
    "DELETE /deliveries/{delivery}": Scope.ADMIN,
    "GET /metrics": Scope.METRICS,
}


@pytest.mark.parametrize("call", SCOPES)
def test_a_key_reaches_only_what_its_scopes_name(api: API, call: str) -> None:
    method, _, path = call.partition(" ")
    ids = {
        "turn": f"turn_{NOBODYS}",
        "conversation": f"conv_{NOBODYS}",
        "vector_store": f"vs_{NOBODYS}",
        "batch": f"vsfb_{NOBODYS}",
    }
    path = path.format(
        **ids, delivery=f"dlv_{NOBODYS}", file=f"file_{NOBODYS}", user="u", fact="f", name="nobodys"
    )

    def status(*scopes: Scope) -> int:
        key = create_key(api.database, api.tenant_id, "x", scopes)
        headers = {"Authorization": f"Bearer {key}"}
        response = api.http.request(method, path, headers=headers)
        if response.status_code == 403:
            error = response.json()["error"]
            assert error["code"] == "insufficient_scope"
            # The key that it prints may do what this one may.
            named = re.findall(r"--scope (\w+)", error["message"])
            assert sorted(named) == sorted({*scopes, SCOPES[call]})
        return response.status_code

    assert status(SCOPES[call]) != 403
    assert status(*(scope for scope in Scope if scope is not SCOPES[call])) == 403


def test_every_route_that_needs_a_key_has_a_scope(api: API) -> None:
    described = api.http.get("/openapi.json").json()["paths"]
    protected = {
        f"{method.upper()} {re.sub(r'_id}', '}', path)}"
        for path, methods in described.items()
        for method, operation in methods.items()
        if operation.get("security")
    }
    assert protected - {"GET /v1/models/{name}"} == set(SCOPES)


def test_a_tenant_s_ordinary_key_does_not_read_metrics(api: API) -> None:
    key = create_key(api.database, api.tenant_id, "web")
    assert Scope.METRICS not in DEFAULT_SCOPES
    headers = {"Authorization": f"Bearer {key}"}
    assert api.http.get("/metrics", headers=headers).status_code == 403


def test_metrics_say_what_is_open(make_api: MakeAPI) -> None:
    api = make_api(api={"wait_s": 0.05})
    assert httpx.get(f"{api.url}/metrics").status_code == 401
    for _ in range(2):
        api.post("x", headers={"X-Turnmill-Conversation": "mine"})
    before = samples(api)
    assert before['turnmill_turns_open_count{lane="interactive",state="queued"}'] == 1
    assert before['turnmill_turns_open_count{lane="interactive",state="waiting"}'] == 1
    assert before["turnmill_outbox_unpublished_count"] == 1
    assert before["turnmill_outbox_unpublished_age_seconds"] > 0
    assert before['turnmill_turns_oldest_open_age_seconds{lane="interactive"}'] > 0
    assert before["turnmill_workers_live_count"] == 0
    route = 'method="POST",route="/v1/chat/completions",status="504"'
    assert before[f"turnmill_api_requests_total{{{route}}}"] == 2
    api.database.run("UPDATE turns SET state = 'parked' WHERE state = 'waiting'")
    assert samples(api)["turnmill_turns_parked_count"] == 1
    with InlineWorker(api.settings):
        assert samples(api)["turnmill_workers_live_count"] == 1
        assert samples(api)["turnmill_workers_consuming_count"] == 1
    api.database.run(
        "INSERT INTO attempts (turn_id, number, worker_id, lane, is_warm) "
        "SELECT id, 1, id, 'interactive', n = 1 "
        "FROM unnest(%s::uuid[]) WITH ORDINALITY AS i (id, n)",
        ([new_id(), new_id()],),
    )
    warm = samples(api)
    assert warm["turnmill_affinity_held_count"] == 2
    assert warm["turnmill_affinity_hits_count"] == 1


def test_every_answer_has_a_request_id(api: API) -> None:
    assert api.http.get("/healthz").headers["x-request-id"]
    echoed = api.http.get("/healthz", headers={"X-Request-Id": "trace-1"})
    assert echoed.headers["x-request-id"] == "trace-1"
    harmful = api.http.get("/healthz", headers={"X-Request-Id": 'a"b c'})
    assert harmful.headers["x-request-id"] != 'a"b c'
    assert api.http.get("/nothing").headers["x-request-id"]


def test_an_unexpected_error_is_told_apart_and_says_nothing(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a private prompt")

    monkeypatch.setattr("turnmill.producer.api.resources.completions.accept_call", fail)
    with capture_logs() as logs:
        response = api.post("a private prompt")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"]
    assert any(entry["event"] == "call.failed" for entry in logs)
    assert "private" not in response.text + str(logs)


def test_nothing_that_is_said_is_logged(answered: API) -> None:
    with capture_logs() as logs:
        answered.post("a private prompt")
        answered.post("a private prompt [[fail]]")
        answered.post("a private prompt", n=2)
        answered.http.get("/v1/models?private=prompt")
    assert [e["status"] for e in logs if e["event"] == "call.answered"] == [200, 500, 400, 200]
    assert "private" not in str(logs)
    assert answered.key not in str(logs)


def test_the_description_is_complete(api: API) -> None:
    schema = httpx.get(f"{api.url}/openapi.json").json()
    references = set(_references(schema))
    schemas = schema["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in references} <= set(schemas)
    assert "ChatCompletionRequest" in schemas
    assert schemas["ChatCompletionRequest"]["properties"]["n"]["enum"] == [None, 1]
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                # What owners and users name has any form.
                if parameter["in"] == "path" and parameter["name"] not in ("name", "user", "fact"):
                    assert parameter["schema"]["pattern"]
    assert "HTTPValidationError" not in schemas
    assert httpx.get(f"{api.url}/docs").status_code == 200


def test_the_page_of_the_description_needs_nothing_from_elsewhere(api: API) -> None:
    page = httpx.get(f"{api.url}/docs")
    assert page.status_code == 200
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(wanted) >= 2
    for address in wanted:
        if not address.startswith("data:"):
            assert address.startswith("/")
            assert httpx.get(f"{api.url}{address}").status_code == 200


def test_the_first_page_says_what_runs_and_its_links_lead_on(api: API) -> None:
    page = httpx.get(api.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "Turnmill" in page.text
    assert "It is ready." in page.text
    for link in re.findall(r'<a href="([^"]+)"', page.text):
        assert httpx.get(f"{api.url}/{link}", timeout=30).status_code == 200


def test_the_description_names_the_headers_that_a_call_takes(answered: API) -> None:
    description = httpx.get(f"{answered.url}/openapi.json", timeout=30).json()
    call = description["paths"]["/v1/chat/completions"]["post"]
    named = {each["name"] for each in call["parameters"] if each["in"] == "header"}
    assert named == {
        "Idempotency-Key",
        "X-Turnmill-Cancel-On-Disconnect",
        "X-Turnmill-Conversation",
        "X-Turnmill-Double-Texting",
        "X-Turnmill-Timeout",
    }
    told = call["responses"]["200"]["headers"]
    assert all(name in answered.post("hi").headers for name in told)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(target := node.get("$ref"), str):
            yield target
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _references(item)


# Stopping


@pytest.fixture
def process(api: API, eventually: Callable[..., None]) -> Iterator[tuple[API, Any]]:
    """`turnmill api` as a process of its own, beside the API in the test's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "TURNMILL_DATABASE__URL": api.settings.database.url.get_secret_value(),
        "TURNMILL_ENGINE__MODEL": BOT,
        "TURNMILL_API__PORT": str(port),
        "TURNMILL_API__STREAM_HEADERS_S": "0.1",
    }
    command = [sys.executable, "-m", "turnmill.producer.cli", "api"]
    started = API(api.settings, Database(api.settings.database), port)
    with subprocess.Popen(command, env=os.environ | environment) as running:
        try:
            eventually(lambda: running.poll() is not None or _is_ready(started))
            yield started, running
        finally:
            running.kill()
            started.close()


def _is_ready(api: API) -> bool:
    try:
        return api.http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_open_calls_politely_and_soon(
    process: tuple[API, Any], eventually: Callable[..., None], number: signal.Signals
) -> None:
    api, running = process
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(api.post, "nobody answers")
        streamed = pool.submit(api.post, "nobody answers", stream=True)
        eventually(lambda: count_turns(api) == 2)
        running.send_signal(number)
        assert running.wait(20) == 0
        assert plain.result().status_code == 503
        assert plain.result().json()["error"]["code"] == "stopping"
        if streamed.result().status_code == 200:
            error = events(streamed.result())[-1]["error"]
        else:
            error = streamed.result().json()["error"]
    assert error["code"] == "stopping"
    states = api.database.run("SELECT state FROM turns WHERE id = %s", (error["turn_id"][5:],))
    assert states[0].state == "queued"


def test_a_stop_answers_a_call_that_waits_for_postgres(
    process: tuple[API, Any], eventually: Callable[..., None]
) -> None:
    api, running = process
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with (
        psycopg.connect(api.settings.database.url.get_secret_value()) as locked,
        psycopg.connect(api.settings.database.url.get_secret_value(), autocommit=True) as link,
        ThreadPoolExecutor(1) as pool,
    ):
        locked.execute("LOCK TABLE conversations")
        call = pool.submit(api.post, "has to wait")
        eventually(lambda: link.execute(waits).fetchone())
        running.send_signal(signal.SIGTERM)
        assert call.result().status_code == 503
        assert call.result().json()["error"]["code"] == "stopping"
        locked.rollback()
        assert running.wait(20) == 0
