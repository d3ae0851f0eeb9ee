"""Every registered channel, through all that a platform and its enemies may send.

There is no broker: nothing on the way from an event to its 2xx needs one.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import psycopg
import pytest
from structlog.testing import capture_logs

from turnmill.producer.channels.registry import CHANNELS
from turnmill.schemas.channels.policies import Texts
from turnmill.schemas.channels.sections.registry import SECTIONS
from turnmill.schemas.errors import DatabaseUnavailable

from .channel_site import Replicas, Site, running_replicas
from .peers.base import Sent
from .peers.registry import PEERS

ANOTHER_SECRET = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"  # noqa: S105
#: How the names of headers end that say who sent a request, and when.
SIGNATURES = (
    "authorization", "ed25519", "sign", "signature", "timestamp", "token", "signature-256",
)  # fmt: skip
#: Values that no signature has.
WRONG = ("", "v0=", "v1,", "é", "1e9", "9" * 400)
RTL = "שלום 👩‍👩‍👧 مرحبا"
CODE = "How?\n```\n<@U0BOT> if a < b && c > d: `x`\n```"


@pytest.fixture(scope="module")
def replicas(
    module_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    eventually: Callable[..., None],
) -> Iterator[Replicas]:
    peers = {kind: PEERS[kind]() for kind in CHANNELS}
    folder = tmp_path_factory.mktemp("site")
    with running_replicas(peers, module_database_url, folder, eventually) as replicas:
        yield replicas


@pytest.fixture(params=CHANNELS)
def site(request: pytest.FixtureRequest, replicas: Replicas) -> Site:
    return replicas.site(request.param)


def test_every_channel_has_a_peer_and_a_section() -> None:
    assert set(PEERS) == set(CHANNELS)
    assert set(CHANNELS) <= set(SECTIONS)


def test_a_message_is_a_turn_with_its_delivery_before_its_platform_is_answered(site: Site) -> None:
    answer = site.send(site.peer.message("Where is my parcel?"))
    assert answer.status_code == 200
    assert site.inputs() == ["Where is my parcel?"]
    assert site.count("deliveries") == 1
    assert site.outcomes() == {"accepted": 1}


def signs_body(site: Site) -> bool:
    return "body" in site.peer.signs


def test_what_is_signed_here_is_valid_to_the_platforms_library(site: Site) -> None:
    sent = site.peer.sign(site.peer.encode(site.peer.message(RTL)))
    assert site.peer.is_valid(sent)
    longer = replace(sent, body=sent.body + b" ")
    assert site.peer.is_valid(longer) is not signs_body(site)


def test_a_request_that_is_not_signed_by_the_platform_is_refused(site: Site) -> None:
    good = site.peer.sign(site.peer.encode(site.peer.message("hi")))
    another = site.peer.sign(good.body, secret=ANOTHER_SECRET)
    changed = [replace(good, body=good.body + b" ")] if signs_body(site) else []
    wrong = [
        another,
        *changed,
        Sent({"Content-Type": good.headers["Content-Type"]}, good.body),
        *(
            replace(good, headers={**good.headers, name: value})
            for name in good.headers
            if name.lower().endswith(SIGNATURES)
            for value in WRONG
        ),
        *(
            replace(good, query={**good.query, name: value})
            for name in good.query
            for value in WRONG
        ),
    ]
    assert not any(map(site.peer.is_valid, [another, *changed]))
    answers = [site.post(each) for each in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_signature"}
    assert site.inputs() == []
    assert site.outcomes() == {"invalid_signature": len(wrong)}


#: Requests of the others carry no time; a replayed one is known by its event's id.
SIGNING_THE_TIME = [kind for kind, peer in PEERS.items() if "time" in peer.signs]


@pytest.mark.parametrize("site", SIGNING_THE_TIME, indirect=True)
@pytest.mark.parametrize("offset_s", [-330, 330])
def test_a_signature_of_another_time_is_refused(site: Site, offset_s: float) -> None:
    body = site.peer.encode(site.peer.message("hi"))
    assert site.post(site.peer.sign(body, at=time.time() + offset_s)).status_code == 401
    assert site.post(site.peer.sign(body, at=time.time() + offset_s * 0.8)).status_code == 200
    assert site.inputs() == ["hi"]


def test_an_event_that_is_sent_again_is_the_same_turn_at_every_replica(site: Site) -> None:
    payload = site.peer.message("once", "Ev0001")
    answers = [site.send(payload, replica) for replica in (0, 1, 0, 1)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert (site.inputs(), site.count("deliveries")) == (["once"], 1)


def test_an_event_that_arrives_at_two_replicas_at_once_is_one_turn(site: Site) -> None:
    payloads = [site.peer.message(str(n), f"Ev{n:04}") for n in range(8)]
    with ThreadPoolExecutor(16) as pool:
        tries = [pool.submit(site.send, each, replica) for each in payloads for replica in (0, 1)]
        assert {each.result().status_code for each in tries} == {200}
    texts = [line for text in site.inputs() for line in text.splitlines()]
    assert sorted(texts) == sorted(map(str, range(8)))


def test_another_content_type_is_refused(site: Site) -> None:
    sent = site.peer.sign(site.peer.encode(site.peer.message("hi")))
    headers = {**sent.headers, "Content-Type": "text/csv"}
    assert site.post(replace(sent, headers=headers)).status_code == 415
    assert site.inputs() == []


def test_a_body_that_is_no_json_object_is_refused(site: Site) -> None:
    body = site.peer.encode(site.peer.message("hi"))
    bodies = (body[: len(body) // 2], b"", b"[]", b"\xff", b'"a"', b"[" * 100_000)
    answers = [site.post(site.peer.sign(each)) for each in bodies]
    assert [answer.status_code for answer in answers] == [400] * len(bodies)
    assert site.inputs() == []


def test_a_body_beyond_the_limit_is_refused_and_one_below_is_read(site: Site) -> None:
    limit = site.peer.max_body_bytes
    payload = site.peer.message("hi")
    fits = site.peer.encode(payload) + b" " * (limit - len(site.peer.encode(payload)))
    assert site.post(site.peer.sign(fits)).status_code == 200
    assert site.post(site.peer.sign(fits + b" ")).status_code == 413
    assert site.inputs() == ["hi"]


def test_a_compressed_body_is_refused(site: Site) -> None:
    sent = site.peer.sign(site.peer.encode(site.peer.message("hi")))
    assert site.post(sent, **{"Content-Encoding": "gzip"}).status_code == 415


def test_an_event_that_means_nothing_here_is_answered_and_counted(site: Site) -> None:
    assert site.send(site.peer.unknown()).status_code == 200
    assert site.inputs() == []
    assert site.outcomes() == {"unknown": 1}


def test_the_bots_own_message_is_answered_and_ignored(site: Site) -> None:
    assert site.send(site.peer.own()).status_code == 200
    assert site.inputs() == []
    assert site.outcomes() == {"own": 1}


def test_what_cannot_be_read_is_no_turn_and_its_user_is_told(site: Site) -> None:
    for payload in (site.peer.message(""), site.peer.message(" \n"), site.peer.attachment()):
        assert site.send(payload).status_code == 200
    assert site.inputs() == []
    assert site.outcomes() == {"unreadable": 3}
    rows = site.database.run("SELECT kind, content FROM deliveries")
    assert {(row.kind, row.content) for row in rows} == {("notice", Texts().unreadable)}


@pytest.mark.parametrize("text", [RTL, CODE, "a\ttab, \"quotes\" and 'more'", "x" * 39_000])
def test_a_text_arrives_as_it_was_typed(site: Site, text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    typed = escaped if site.peer.escapes else text
    assert site.send(site.peer.message(typed)).status_code == 200
    assert site.inputs() == [text]


def test_a_text_that_is_too_long_is_cut_and_its_user_is_told_or_refused(site: Site) -> None:
    answer = site.send(site.peer.message("x" * 40_001))
    if answer.status_code == 400:
        assert site.inputs() == []
        return
    assert site.inputs() == ["x" * 40_000]
    rows = site.database.run("SELECT kind, content FROM deliveries ORDER BY ordinal")
    assert [(row.kind, row.content) for row in rows] == [
        ("notice", Texts().shortened),
        ("reply", None),
    ]


@pytest.mark.parametrize(
    "site", [kind for kind, peer in PEERS.items() if peer.is_json], indirect=True
)
def test_what_postgres_cannot_store_is_replaced(site: Site) -> None:
    body = site.peer.encode(site.peer.message("a MARK b"))
    body = body.replace(b"MARK", b"\\u0000 \\ud800")
    assert site.post(site.peer.sign(body)).status_code == 200
    assert site.inputs() == ["a \ufffd \ufffd b"]


def test_without_a_database_the_platform_is_asked_to_send_again(
    site: Site, postgres_url: str, eventually: Callable[..., None]
) -> None:
    name = site.settings.database.url.get_secret_value().rpartition("/")[2]
    payload = site.peer.message("hi", "Ev0001")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        assert site.send(payload).status_code == 503
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for replica in (0, 1):
            eventually(lambda replica=replica: site.send(payload, replica).status_code == 200)
    # The pool's connections of before fail once.
    with suppress(DatabaseUnavailable):
        site.inputs()
    assert site.inputs() == ["hi"]


def test_an_unknown_channel_and_another_method_are_refused_in_words(site: Site) -> None:
    url = site.urls[0]
    with capture_logs() as logs:
        assert site.http.post(f"{url}-of-nobody").status_code == 404
    names = [each["channel"] for each in logs if each["event"] == "channel.unknown"]
    assert names == [f"{url.rpartition('/')[2]}-of-nobody"]
    answer = site.http.get(url)
    refusal = (405, "POST") if site.peer.methods == "POST" else (401, None)
    assert (answer.status_code, answer.headers.get("Allow")) == refusal


def test_why_a_verified_event_could_not_be_committed_is_logged_and_counted(
    site: Site, eventually: Callable[..., None]
) -> None:
    """Its channel names a bot that is not there."""
    payload = site.peer.message("my secret question")
    site.database.run("UPDATE bots SET name = 'elsewhere' WHERE name = 'helper'")
    try:
        with capture_logs() as logs:
            # Connections that an earlier test has cut fail once, with 503.
            eventually(lambda: site.send(payload).status_code == 404)
    finally:
        site.database.run("UPDATE bots SET name = 'helper' WHERE name = 'elsewhere'")
    failed = [each for each in logs if each["event"] == "channel.failed"][-1]
    name = site.urls[0].rpartition("/")[2]
    assert (failed["channel"], failed["code"]) == (name, "model_not_found")
    assert "helper" in failed["reason"]
    assert "secret question" not in json.dumps(logs, default=str)
    assert site.outcomes()["model_not_found"] == 1
    # The pool may have another of these connections.
    eventually(lambda: site.send(payload).status_code == 200)
    assert site.inputs() == ["my secret question"]


def test_neither_texts_nor_secrets_are_logged(site: Site) -> None:
    with capture_logs() as logs:
        site.send(site.peer.message("my secret question"))
        body = site.peer.encode(site.peer.message("my secret question"))
        site.post(site.peer.sign(body, secret=ANOTHER_SECRET))
    shown = json.dumps(logs, default=str)
    assert "channel.refused" in shown
    assert "secret question" not in shown
    assert not any(value in shown for value in site.peer.variables.values())
