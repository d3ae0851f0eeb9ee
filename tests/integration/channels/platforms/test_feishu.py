"""Replies in Feishu, against the mock that keeps its rules."""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply
from turnmill.infra.mocks.feishu.api import APP_ID, APP_SECRET, MAX_CARD, FeishuAPI
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.feishu.adapter import FeishuDelivery
from turnmill.workers.delivery.feishu.cards import to_markdown

TARGET = {
    "message": "om_question",
    "chat": "oc_general",
    "thread": "oc_general/om_question",
    "in_thread": "yes",
}


@pytest.fixture
def feishu() -> Iterator[FeishuAPI]:
    with FeishuAPI() as api:
        yield api


@pytest.fixture
def chat(feishu: FeishuAPI, monkeypatch: pytest.MonkeyPatch) -> Reply:
    monkeypatch.setenv("FEISHU_SECRET", APP_SECRET)
    secret = SecretReference(env="FEISHU_SECRET")
    section = FeishuSection(
        kind="feishu",
        bot="b",
        app_id=APP_ID,
        app_secret=secret,
        encrypt_key=secret,
        api_url=feishu.url,
    )
    delivery = FeishuDelivery("f", section, DeliverySettings(timeout_s=1, lease_s=2))
    return Reply(delivery, **TARGET)


def test_a_reply_is_a_card_in_its_topic_with_buttons_that_name_turn_and_thread(
    feishu: FeishuAPI, chat: Reply
) -> None:
    assert chat.send("**Yes.**")
    (posted,) = feishu.messages
    assert (posted.text, posted.answers, posted.is_in_thread) == ("**Yes.**", "om_question", True)
    values = [button["behaviors"][0]["value"] for button in posted.buttons]
    assert {value["thread"] for value in values} == {TARGET["thread"]}
    assert chat.job.turn_id is not None
    turn = f"turn_{chat.job.turn_id.hex}"
    assert [value["turnmill"] for value in values] == [f"good:{turn}", f"bad:{turn}", "hand_off"]


def test_a_reply_is_shown_while_it_is_written_in_one_card(feishu: FeishuAPI, chat: Reply) -> None:
    for text in ("", "One.", "One. Two.", "One. Two."):
        assert chat.show(text)
    assert chat.send("One. Two. Three.")
    (posted,) = feishu.messages
    assert posted.history == ["One.", "One. Two.", "One. Two. Three."]
    assert len(posted.buttons) == 3


def test_a_cancelled_turns_card_stays_as_it_was_shown(feishu: FeishuAPI, chat: Reply) -> None:
    chat.show("One.")
    assert chat.send(None)
    assert feishu.texts == ["One."]


def test_a_long_reply_comes_in_cards_that_feishu_takes(feishu: FeishuAPI, chat: Reply) -> None:
    code = "```python\n" + "".join(f'x{n} = "\\n"\n' for n in range(2000)) + "```"
    text = f"{'这是一个句子。' * 4000}\n\n{code}"
    assert chat.send(text)
    assert len(feishu.messages) > 3
    assert all(each.count("```") % 2 == 0 for each in feishu.texts)
    for n in range(2000):
        assert any(f'\nx{n} = "\\n"\n' in each for each in feishu.texts)
    sizes = [len(json.dumps(given).encode()) for name, given in feishu.calls if name == "reply"]
    assert max(sizes) < MAX_CARD
    assert [bool(m.buttons) for m in feishu.messages] == [False] * (len(sizes) - 1) + [True]


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
@pytest.mark.parametrize("call", ["reply", "update"])
def test_a_call_in_doubt_is_repeated_and_nothing_stands_there_twice(
    feishu: FeishuAPI, chat: Reply, call: str, kind: str
) -> None:
    if call == "update":
        chat.show("One.")
    feishu.order(call, kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.show("One. Two.")
    assert error.value.is_doubtful
    assert chat.send("One. Two. Three.", is_doubtful=True)
    assert feishu.texts == ["One. Two. Three."]


def test_a_card_that_cannot_be_shown_is_shown_as_plain_text(feishu: FeishuAPI, chat: Reply) -> None:
    table = "| a |\n|--|\n| b |\n\n"
    chat.show(table)
    assert chat.send(table * 7)
    assert feishu.messages[0].history == [table.strip(), (table * 7).strip()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<at id=all></at> a < b", "&#60;at id=all>&#60;/at> a < b"),
        ("![photo](https://a.example/b.png)", "[photo](https://a.example/b.png)"),
        ("```html\n<b><at id=all>\n```", "```html\n<b><\u200bat id=all>\n```"),
    ],
)
def test_what_a_model_writes_mentions_nobody_and_shows_no_picture(text: str, shown: str) -> None:
    assert to_markdown(text) == shown


def test_one_token_serves_all_calls_and_is_renewed_when_feishu_takes_it_no_more(
    feishu: FeishuAPI, chat: Reply
) -> None:
    chat.show("One.")
    chat.show("One. Two.")
    assert feishu.count("token") == 1
    feishu.tokens.clear()
    assert chat.send("One. Two. Three.")
    assert (feishu.count("token"), feishu.texts) == (2, ["One. Two. Three."])


def test_a_limit_is_a_pause_and_no_doubt(feishu: FeishuAPI, chat: Reply) -> None:
    feishu.order("reply", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (7.0, False)
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        chat.send("Yes.")
    feishu.refusals = {"reply": [230020]}
    other = Reply(chat.delivery, **chat.job.target | {"thread": "another"})
    with pytest.raises(ChannelUnavailable) as error:
        other.send("Yes.")
    assert error.value.retry_after_s == 5.0


def test_a_refusal_names_feishus_code_and_what_to_do(feishu: FeishuAPI, chat: Reply) -> None:
    feishu.refusals = {"reply": [230011]}
    with pytest.raises(DeliveryRefused) as error:
        chat.send("Yes.")
    assert error.value.reason == "230011"
    assert "was recalled" in error.value.message
    feishu.refusals = {"token": [10014]}
    feishu.tokens.clear()
    with pytest.raises(DeliveryRefused) as error:
        chat.send("Yes.")
    assert APP_SECRET not in error.value.message


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_reply_is_there_once_at_whatever_step_the_worker_is_killed(
    feishu: FeishuAPI, chat: Reply, steps: int
) -> None:
    chat.notes.dies_after = steps - 1
    text = "这是一个句子。" * 3000
    with suppress(Killed):
        chat.show(text[:70])
        chat.show(text[:700])
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert len(feishu.texts) > 1
    assert "".join(feishu.texts) == text


def test_a_file_without_its_scope_is_refused_by_the_scopes_name(
    chat: Reply, feishu: FeishuAPI
) -> None:
    feishu.files["om_1", "img_1", "image"] = b"picture"
    assert chat.delivery.fetch("om_1/img_1/image", 10_000) == b"picture"
    feishu.scopes["im:message:readonly"] = 2
    with pytest.raises(DeliveryRefused, match="scope im:message:readonly"):
        chat.delivery.fetch("om_1/img_1/image", 10_000)
