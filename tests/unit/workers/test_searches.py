"""Searches: what leaves for a server, and a server that fails is left alone."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from turnmill.schemas.channels.unknown import Step
from turnmill.schemas.errors import SearchUnavailable, SettingsError
from turnmill.schemas.ids import new_id
from turnmill.schemas.safety.policy import Safety
from turnmill.schemas.settings import SearchSettings
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.workers.context.ladder import Missed, next_verdicts
from turnmill.workers.safety.sifting import for_server
from turnmill.workers.search import searches as module
from turnmill.workers.search.base import Found
from turnmill.workers.search.query import MAX_QUERY_CHARS, query_of
from turnmill.workers.search.searches import PAUSE_S, Searches

FOUND = Found("https://cup.example/", "Cup", "Germany won.")


class Server:
    """A connector that does what `does` says."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.does: Callable[[], list[Found]] = lambda: [FOUND]

    def search(self, query: str) -> list[Found]:
        self.queries.append(query)
        return self.does()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(module, "create_searcher", lambda _: server)
    return server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def searches(server: Server, clock: Any) -> Searches:
    return Searches(SearchSettings(url="http://localhost"))


def claim(**safety: Any) -> Any:
    return SimpleNamespace(safety=Safety.model_validate(safety), turn_id=new_id())


def fail(error: Exception) -> Callable[[], list[Found]]:
    def raise_it() -> list[Found]:
        raise error

    return raise_it


@pytest.mark.parametrize("error", [SearchUnavailable("away"), ValueError("what a library says")])
def test_a_server_that_fails_is_left_alone_for_a_while_and_asked_again(
    server: Server, searches: Searches, clock: Any, error: Exception
) -> None:
    server.does = fail(error)
    for _ in range(5):
        assert searches.find(claim(), "Who won?") == ()
    assert len(server.queries) == 1
    server.does = lambda: [FOUND]
    clock.now = PAUSE_S + 1
    assert [each.url for each in searches.find(claim(), "Who won?")] == [FOUND.url]
    assert searches.find(claim(), "Who won?")
    assert len(server.queries) == 3


@pytest.mark.parametrize(("asked_s", "pause_s"), [(5.0, PAUSE_S), (120.0, 120.0), (1e6, 600.0)])
def test_a_server_that_asks_for_a_pause_gets_it_within_bounds(
    server: Server, searches: Searches, clock: Any, asked_s: float, pause_s: float
) -> None:
    server.does = fail(SearchUnavailable("429", retry_after_s=asked_s))
    searches.find(claim(), "Who won?")
    clock.now = pause_s - 1
    searches.find(claim(), "Who won?")
    assert len(server.queries) == 1
    clock.now = pause_s + 1
    searches.find(claim(), "Who won?")
    assert len(server.queries) == 2


def test_after_a_pause_one_thread_asks_and_the_others_do_not_wait(
    server: Server, searches: Searches, clock: Any
) -> None:
    server.does = fail(SearchUnavailable("away"))
    searches.find(claim(), "Who won?")
    clock.now = PAUSE_S + 1
    is_asked, go = threading.Event(), threading.Event()

    def answer_late() -> list[Found]:
        is_asked.set()
        assert go.wait(10)
        return [FOUND]

    server.does = answer_late
    thread = threading.Thread(target=searches.find, args=(claim(), "Who won?"))
    thread.start()
    assert is_asked.wait(10)
    assert searches.find(claim(), "Who won?") == ()
    go.set()
    thread.join()
    assert len(server.queries) == 2


def test_a_connector_that_is_none_stops_the_worker() -> None:
    with pytest.raises(SettingsError, match="altavista"):
        Searches(SearchSettings(name="altavista", url="http://localhost"))


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("Who won the cup in 1954?", "Who won the cup in 1954?"),
        ("谁赢得了1954年的冠军？", "谁赢得了1954年的冠军?"),
        ("line one\nline two", "line one line two"),
        ("I am bob@x.example, order 4711 0815 2342", "I am , order"),
        ("订单SF1234567怎么退？ AB123456-C", "订单 怎么退?"),
        ("Is ISO 9001 or DIN EN 1935 for kettles of 2024?",) * 2,
        ("打 13812345678 找我：怎么退货？", "打 找我:怎么退货?"),
        ("<phone> is masked, and so is <PHONE_1>", "is masked, and so is"),
        ("my key ghp_012345678901234567890123456789abcdef fails", "my key fails"),
        ("请打１３８００１３８０００", "请打"),
        ("٠١٢٣ ٤٥٦٧ ٨٩ call", "call"),
        ("card ５１２３－４５６７－８９０１－２３４５ fails", "card fails"),
        ("ｂｏｂ＠ｘ.example asks", "asks"),
        ("write info@bücher.de, müller@example.com, root@localhost", "write , ,"),
        ("我的邮箱是bob@x.example怎么改", "我的邮箱是 怎么改"),
        ("发到用户@例子.公司 怎么退货", "怎么退货"),
        ("see HTTPS://Intranet/reset?token=abc now", "see now"),
        ("请看intranet.corp.example/reset?token=abc 怎么办", "请看 怎么办"),
        ("open intranet:8080/reset?token=abc or 10.0.0.1/a", "open or"),
        ("例子.测试/重置 是什么", "是什么"),
        ("https://a.example/?mail=bob@x.example&key=sk-0123456789abcdefghij0123&t=1 why", "why"),
        ("https://a.example/<email>/secret why", "why"),
        ("IBAN de89 3704 0044 0532 0130 00 thanks", "IBAN thanks"),
        ("iban gb29 nwbk 6016 1331 9268 19 thanks", "iban thanks"),
        ("Does mp34 with this play and/or record on example.com, v1.2/3?",) * 2,
        ("bob@x.example", ""),
        ("  ?! ", ""),
        ("", ""),
    ],
)
def test_a_query_is_the_question_without_what_is_private(question: str, query: str) -> None:
    assert query_of(claim(), question) == query


def test_of_a_long_question_the_end_is_asked() -> None:
    query = query_of(claim(), "word " * 1000 + "How do I return it?")
    assert len(query) <= MAX_QUERY_CHARS
    assert query.startswith("word ")
    assert query.endswith("How do I return it?")
    assert len(query_of(claim(), "退" * 1000)) == MAX_QUERY_CHARS


def test_what_the_bot_masks_in_messages_is_asked_of_nobody() -> None:
    policy = claim(checks=["words:mask"], words=["Project Nightjar"])
    assert query_of(policy, "What is Project Nightjar made of?") == "What is made of?"


def test_a_word_is_masked_in_whatever_form_it_or_the_message_has() -> None:
    policy = claim(checks=["words:mask"], words=["Nightjar", "Ｋｅｔｔｌｅ"])
    assert query_of(policy, "Ｎｉｇｈｔｊａｒ, Ｋｅｔｔｌｅ?") == ""
    hidden = for_server(policy.safety, policy.turn_id, "Ｎｉｇｈｔｊａｒ, Ｋｅｔｔｌｅ?")
    assert hidden == "<word>, <word>?"
    policy = claim(remote="pseudonyms")
    assert for_server(policy.safety, policy.turn_id, "ｂｏｂ＠ｘ.example?") == "<EMAIL_1>?"


def test_where_a_check_fails_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SettingsError("not installed")

    monkeypatch.setattr("turnmill.workers.search.query.for_server", broken)
    assert query_of(claim(remote="pseudonyms"), "Who won?") == ""


C, S, U, H = Step.CLARIFY, Step.SEARCH, Step.UNCERTAIN, Step.HAND_OFF


@pytest.mark.parametrize(
    ("steps", "last", "may_clarify", "verdicts"),
    [
        ((C, S, U, H), None, True, "clarify searched uncertain handed_off"),
        ((C, S, U, H), None, False, "searched uncertain handed_off"),
        ((C, S, U, H), C, True, "searched uncertain handed_off"),
        ((C, S, U, H), U, True, "searched handed_off"),
        ((U, S), None, True, "uncertain searched"),
        ((U, S), U, True, "searched uncertain"),
        ((S,), None, True, "searched uncertain"),
        ((C, U), U, True, "uncertain"),
        ((C,), C, True, "uncertain"),
    ],
)
def test_a_search_is_tried_for_each_question_and_never_the_end(
    steps: tuple[Step, ...], last: Step | None, may_clarify: bool, verdicts: str
) -> None:
    missed = None if last is None else Missed(last, "", ())
    found = next_verdicts(steps, missed, may_clarify=may_clarify)
    kept = dict.fromkeys(found)
    assert list(kept) == [Verdict(each) for each in verdicts.split()]
    assert found[-1] is not Verdict.SEARCHED
