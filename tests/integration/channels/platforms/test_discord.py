"""Replies in Discord, against the mock that keeps its rules."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.discord import (
    APPLICATION_ID,
    BOT_TOKEN,
    CHANNEL_ID,
    MAX_TEXT,
    DiscordAPI,
    public_key,
)
from turnmill.producer.channels.discord.check import check_discord, register_discord
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.discord import DiscordDelivery, to_discord

TOKEN = "made-up-interaction-token"  # noqa: S105


@pytest.fixture
def discord() -> Iterator[DiscordAPI]:
    with DiscordAPI() as api:
        api.public_key = public_key("secret")
        yield api


@pytest.fixture
def section(discord: DiscordAPI, monkeypatch: pytest.MonkeyPatch) -> DiscordSection:
    monkeypatch.setenv("DISCORD_TOKEN", BOT_TOKEN)
    return DiscordSection(
        kind="discord",
        bot="b",
        application_id=APPLICATION_ID,
        public_key=public_key("secret"),
        bot_token=SecretReference(env="DISCORD_TOKEN"),
        api_url=discord.url,
    )


@pytest.fixture
def delivery(section: DiscordSection) -> DiscordDelivery:
    return DiscordDelivery("d", section, DeliverySettings(timeout_s=1, lease_s=2))


def asked(delivery: DiscordDelivery, ends_in_s: float = 900, channel: str = CHANNEL_ID) -> Reply:
    ends_at = str(int(time.time() + ends_in_s))
    return Reply(delivery, channel=channel, token=TOKEN, expires_at=ends_at)


@pytest.fixture
def chat(delivery: DiscordDelivery) -> Reply:
    return asked(delivery)


def test_a_reply_takes_the_place_of_thinking_with_buttons(discord: DiscordAPI, chat: Reply) -> None:
    discord.thinking.add(TOKEN)
    assert chat.send("**Yes.** @everyone")
    (posted,) = discord.messages
    assert (posted.text, posted.way) == ("**Yes.** @everyone", "original")
    assert chat.job.turn_id is not None
    turn = f"turn_{chat.job.turn_id.hex}"
    assert posted.buttons == [f"good:{turn}", f"bad:{turn}", "hand_off"]
    assert discord.thinking == set()


def test_a_reply_is_shown_while_it_is_written(discord: DiscordAPI, chat: Reply) -> None:
    for text in ("", "One.", "One. Two.", "One. Two."):
        assert chat.show(text)
    assert chat.send("One. Two. Three.")
    (posted,) = discord.messages
    assert posted.history == ["One.", "One. Two.", "One. Two. Three."]


def test_nothing_thinks_after_a_turn_was_cancelled(discord: DiscordAPI, chat: Reply) -> None:
    discord.thinking.add(TOKEN)
    assert not chat.send(None)
    assert (discord.thinking, discord.texts) == (set(), [])


def test_what_somebody_took_away_before_is_no_failure(discord: DiscordAPI, chat: Reply) -> None:
    discord.deleted.add(TOKEN)
    assert not chat.send(None)


def test_a_reply_whose_place_somebody_deleted_follows(discord: DiscordAPI, chat: Reply) -> None:
    discord.deleted.add(TOKEN)
    assert chat.send("Yes.")
    assert [(posted.way, posted.text) for posted in discord.messages] == [("followup", "Yes.")]


def test_a_token_that_discord_ended_early_is_called_once_and_the_bot_sends(
    discord: DiscordAPI, chat: Reply
) -> None:
    discord.expired.add(TOKEN)
    assert chat.send("Yes. " * 700)
    assert {posted.way for posted in discord.messages} == {"bot"}
    assert [name for name, _ in discord.calls] == ["original", "bot", "bot"]


def test_what_was_shown_of_a_cancelled_turn_stays(discord: DiscordAPI, chat: Reply) -> None:
    chat.show("One.")
    assert chat.send(None)
    assert discord.texts == ["One."]


def test_a_notice_follows_and_does_not_replace_the_answer(discord: DiscordAPI, chat: Reply) -> None:
    assert chat.notify("Stopped.")
    assert [(posted.way, posted.text) for posted in discord.messages] == [("followup", "Stopped.")]


@pytest.mark.parametrize("ends_in_s", [900, 0])
def test_a_long_reply_comes_in_messages_that_discord_takes(
    discord: DiscordAPI, delivery: DiscordDelivery, ends_in_s: float
) -> None:
    assert asked(delivery, ends_in_s).send(long_text())
    assert max(len(each) for each in discord.texts) <= MAX_TEXT
    assert all(each.count("```") % 2 == 0 for each in discord.texts)
    assert all(any(f"\nx{n} = {n}\n" in each for each in discord.texts) for n in range(800))
    assert [bool(m.buttons) for m in discord.messages][-2:] == [False, True]
    ways = {posted.way for posted in discord.messages}
    assert ways == ({"original", "followup"} if ends_in_s else {"bot"})


def test_a_reply_whose_token_ended_while_it_was_written_is_sent_by_the_bot(
    discord: DiscordAPI, chat: Reply
) -> None:
    chat.show("One.")
    discord.expired.add(TOKEN)
    chat.job.target["expires_at"] = "0"
    assert chat.send("One. Two.")
    assert [(posted.way, posted.text) for posted in discord.messages] == [
        ("original", "One."),
        ("bot", "One. Two."),
    ]


def test_a_reply_is_whole_though_its_token_ended_before_the_first_word(
    discord: DiscordAPI, chat: Reply
) -> None:
    discord.expired.add(TOKEN)
    chat.show("One.")
    chat.show("One. Two.")
    assert chat.send("One. Two. Three.")
    assert [(posted.way, posted.text) for posted in discord.messages] == [
        ("bot", "One. Two. Three."),
    ]


def test_an_interaction_that_is_not_answered_yet_is_waited_for(
    discord: DiscordAPI, chat: Reply
) -> None:
    discord.refusals = {"original": [10015]}
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.retry_after_s == 1.0
    assert discord.texts == []


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
@pytest.mark.parametrize("ends_in_s", [900, 0])
def test_a_call_in_doubt_is_repeated_and_nothing_stands_there_twice(
    discord: DiscordAPI, delivery: DiscordDelivery, ends_in_s: float, kind: str
) -> None:
    chat = asked(delivery, ends_in_s)
    discord.order("original" if ends_in_s else "bot", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert discord.texts == ["Yes."]


@pytest.mark.parametrize("ends_in_s", [900, 0])
@pytest.mark.parametrize("steps", range(1, 6))
def test_at_most_one_part_is_there_twice_at_whatever_step_the_worker_is_killed(
    discord: DiscordAPI, delivery: DiscordDelivery, ends_in_s: float, steps: int
) -> None:
    chat = asked(delivery, ends_in_s)
    text = "\n\n".join(f"{n}" + "A sentence. " * 150 for n in range(4))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.show(text[:70])
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    numbers = [int(each[0]) for each in discord.texts]
    assert list(dict.fromkeys(numbers)) == [0, 1, 2, 3]
    assert len(numbers) <= (5 if ends_in_s else 4)


def test_a_limit_is_a_pause_for_its_channel_alone(
    discord: DiscordAPI, delivery: DiscordDelivery, chat: Reply
) -> None:
    discord.order("original", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (7.0, False)
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        chat.send("Yes.")
    assert asked(delivery, channel="another").send("Yes.")


def test_no_call_is_made_that_discord_said_it_would_refuse(
    section: DiscordSection, eventually: Callable[..., None]
) -> None:
    with DiscordAPI(limited=True) as discord:
        changes = {"api_url": discord.url}
        delivery = DiscordDelivery("d", section.model_copy(update=changes), DeliverySettings())
        chat = asked(delivery)
        pauses = []

        def is_sent() -> bool:
            try:
                return chat.send(long_text())
            except ChannelUnavailable as error:
                assert not error.is_doubtful
                pauses.append(error.retry_after_s)
                return False

        eventually(is_sent, 30)
        assert (discord.refused_count, len(set(discord.texts))) == (0, len(discord.texts))
    assert pauses


def test_the_limit_of_the_whole_bot_holds_up_what_the_bot_sends_and_no_answers(
    discord: DiscordAPI, delivery: DiscordDelivery
) -> None:
    discord.is_global = True
    discord.order("bot", "429", retry_after_s=7)
    for channel in ("one", "another"):
        with pytest.raises(ChannelUnavailable) as error:
            asked(delivery, 0, channel).send("Yes.")
        assert 6 < (error.value.retry_after_s or 0) <= 7
    assert discord.count("bot") == 1
    assert asked(delivery, channel="a third").send("Yes.")


def test_a_refusal_names_discords_code_and_what_to_do(
    discord: DiscordAPI, delivery: DiscordDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    discord.refusals = {"bot": [50013]}
    with pytest.raises(DeliveryRefused, match="Send Messages") as error:
        asked(delivery, 0).send("Yes.")
    assert error.value.reason == "50013"
    assert TOKEN not in error.value.message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("| a |\n|--|\n| b |", "```\n| a |\n|--|\n| b |\n```"),
        ("![photo](https://a.example/b.png)", "[photo](https://a.example/b.png)"),
        ("[https://a.example](https://a.example)", "https://a.example"),
        ("```py\n**x**\n```", "```py\n**x**\n```"),
    ],
)
def test_markdown_becomes_discords(text: str, shown: str) -> None:
    assert to_discord(text) == shown


def test_commands_and_the_address_are_registered_and_checked(
    discord: DiscordAPI, section: DiscordSection
) -> None:
    found = list(check_discord(section))
    assert [finding.level for finding in found] == [Level.OK, Level.WARNING, Level.WARNING]
    assert "ask" in found[-1].detail
    found = list(register_discord(section, "https://bots.example.com/channels/d"))
    assert [finding.level for finding in found] == [Level.OK, Level.OK]
    names = [command["name"] for command in discord.commands]
    assert names == ["ask", "stop", "reset", "human", "resume", "Ask"]
    assert {finding.level for finding in check_discord(section)} == {Level.OK}
    discord.refusals = {"commands": [50001]}
    assert "guild_id" in str(list(check_discord(section))[-1].fix)
    other = section.model_copy(update={"public_key": "0" * 64})
    assert "public_key" in str(list(check_discord(other)))
