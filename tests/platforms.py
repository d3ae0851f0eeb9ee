"""The platforms that replies are brought to: their mocks, and the steps at which a worker may die.

A new platform is one entry. `row` is its row in the table of docs/channels/delivery.md, which says
how many messages one death may double.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turnmill.infra.mocks import chatwoot, dingtalk, discord, wechat, whatsapp
from turnmill.infra.mocks.feishu import api as feishu
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.infra.mocks.slack import api as slack
from turnmill.infra.mocks.teams import api as teams
from turnmill.infra.mocks.teams import webhooks
from turnmill.infra.mocks.teams.activities import APP_ID, APP_SECRET
from turnmill.infra.mocks.telegram import api as telegram
from turnmill.infra.mocks.wecom import api as wecom_api

SECRET: Any = object()
"""In a section: what the variable of the platform leads to."""

ADDRESS: Any = object()
"""In a section: a variable that leads to the address of the mock."""


@dataclass(frozen=True, slots=True)
class Step:
    """A call that is made after the phases of its turn that are named: `ask` (it waits), `write`
    (the first words of its reply are there), `rewrite` (there are more) and `end`."""

    phases: str
    call: str
    #: It is the call of this name that comes after so many in the last phase.
    after: int = 0


@dataclass(frozen=True)
class Platform:
    row: str
    kind: str
    make: Callable[[], Any]
    #: Of `turnmill.toml`; `{url}` in it is the mock's.
    section: dict[str, Any]
    secret: str
    #: Of the delivery, or made of the mock.
    target: dict[str, str] | Callable[[Any], dict[str, str]]
    #: Characters of a reply that has no room in one message.
    length: int
    steps: tuple[Step, ...]
    #: Whether the mock shows a message that is still being written.
    is_open: Callable[[Any], bool] = field(default=lambda _: False)


class WebhookAPI(MockAPI):
    """A receiver that drops what it has, as Standard Webhooks ask it to."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, str] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._kept.values())

    def name(self, call: Call) -> str:
        return "post"

    def limited(self, retry_after_s: float) -> Reply:
        return Reply(429, None, {"Retry-After": str(int(retry_after_s))})

    def answer(self, call: Call) -> Reply:
        self._kept[call.headers["webhook-id"]] = call.given["data"]["text"]
        return Reply(204)


def _parts(call: str) -> tuple[Step, ...]:
    """A reply of two messages that is sent when it is complete."""
    return Step("end", call), Step("end", call, after=1)


def _edited(post: str, edit: str, more: str) -> tuple[Step, ...]:
    """A reply whose first message is edited while it is written; `more` brings the second one."""
    return (
        Step("write", post),
        Step("write rewrite", edit),
        Step("write end", edit),
        Step("write end", more),
    )


def _slack_thread(api: slack.SlackAPI) -> dict[str, str]:
    workspace = api.board.workspace
    target = {"channel": workspace.channel, "thread_ts": api.board.say("question").ts}
    return target | {"user": workspace.user, "team": workspace.team}


def _slack_command(api: slack.SlackAPI) -> dict[str, str]:
    channel = api.board.workspace.channel
    return {"channel": channel, "is_command": "yes", "response_url": api.response_url(channel)}


def _slack_streams(api: slack.SlackAPI) -> bool:
    return any(message.is_streaming for message in api.board.messages)


_SLACK = {"bot_token": SECRET, "signing_secret": SECRET, "api_url": "{url}"}
_TELEGRAM = {"bot_token": SECRET, "secret_token": SECRET, "api_url": "{url}"}
_FEISHU = {"app_id": feishu.APP_ID, "app_secret": SECRET, "encrypt_key": SECRET, "api_url": "{url}"}
_WHATSAPP = {
    "phone_number_id": whatsapp.NUMBER, "app_secret": SECRET, "verify_token": SECRET,
    "access_token": SECRET, "api_url": "{url}/v26.0",
}  # fmt: skip
_DISCORD = {
    "application_id": discord.APPLICATION_ID, "public_key": "0" * 64, "bot_token": SECRET,
    "api_url": "{url}",
}  # fmt: skip
_WECOM = {
    "corp_id": wecom_api.CORP_ID, "agent_id": wecom_api.AGENT_ID, "secret": SECRET,
    "token": SECRET, "encoding_aes_key": SECRET, "api_url": "{url}",
}  # fmt: skip
_CHATWOOT = {"account_id": 1, "bot_token": SECRET, "url_token": SECRET, "api_url": "{url}"}
_WECHAT = {
    "app_id": wechat.APP_ID, "app_secret": SECRET, "token": SECRET, "encoding_aes_key": SECRET,
    "api_url": "{url}",
}  # fmt: skip
_TEAMS = {"app_id": APP_ID, "app_secret": SECRET, "api_url": "{url}"}
_GROUP = {"chat": "-1001234", "type": "supergroup", "message": "17"}
_CARD = {"message": "om_question", "chat": "oc_1", "thread": "oc_1/om_question", "in_thread": "yes"}
_INTERACTION = {"channel": "1100000000000000008", "token": "made-up", "expires_at": "9999999999"}


def _session(api: dingtalk.DingTalkAPI) -> dict[str, str]:
    return {"conversation": "c", "webhook": api.session, "expires_at": str(time.time() + 5000)}


def _teams_thread(api: teams.TeamsAPI) -> dict[str, str]:
    thread = "19:general@thread.tacv2;messageid=1700000000001"
    target = {"service": api.service, "conversation": thread, "type": "channel"}
    return target | {"message": "17", "bot": "28:bot"}


PLATFORMS = (
    Platform("`slack`, messages", "slack", slack.SlackAPI, _SLACK, slack.TOKEN, _slack_thread, 4500,
             (Step("ask", "assistant.threads.setStatus"), *_parts("chat.postMessage"))),
    Platform("`slack`, streamed or edited while it is written", "slack", slack.SlackAPI, _SLACK,
             slack.TOKEN, _slack_thread, 4500,
             (Step("write", "chat.startStream"), Step("write rewrite", "chat.appendStream"),
              Step("write rewrite end", "chat.stopStream")), _slack_streams),
    Platform("`slack`, streamed or edited while it is written", "slack", slack.SlackAPI,
             _SLACK | {"streams": False}, slack.TOKEN, _slack_thread, 4500,
             _edited("chat.postMessage", "chat.update", "chat.postMessage")),
    Platform("`slack`, slash commands", "slack", slack.SlackAPI, _SLACK, slack.TOKEN,
             _slack_command, 12_000, _parts("response_url")),
    Platform("`telegram`", "telegram", telegram.TelegramAPI, _TELEGRAM, telegram.TOKEN,
             {"chat": "4711", "type": "private"}, 6000,
             (Step("ask", "sendChatAction"), Step("write", "sendMessageDraft"),
              *_parts("sendMessage"))),
    Platform("`telegram`", "telegram", telegram.TelegramAPI, _TELEGRAM, telegram.TOKEN, _GROUP,
             6000, _edited("sendMessage", "editMessageText", "sendMessage")),
    Platform("`whatsapp`", "whatsapp", whatsapp.WhatsAppAPI, _WHATSAPP, whatsapp.TOKEN,
             {"to": whatsapp.USER, "message": "wamid.1"}, 6000,
             (Step("ask", "typing"), *_parts("messages"))),
    Platform("`feishu`", "feishu", feishu.FeishuAPI, _FEISHU, feishu.APP_SECRET, _CARD, 36_000,
             (*_edited("reply", "update", "reply"), *_parts("reply"))),
    Platform("`discord`, the first part", "discord", discord.DiscordAPI, _DISCORD,
             discord.BOT_TOKEN, _INTERACTION, 3000,
             (Step("write", "original"), Step("write rewrite", "edit"), Step("write end", "edit"),
              Step("end", "original"))),
    Platform("`discord`, further parts within the fifteen minutes", "discord", discord.DiscordAPI,
             _DISCORD, discord.BOT_TOKEN, _INTERACTION, 3000,
             (Step("write end", "followup"), Step("end", "followup"))),
    Platform("`discord`, later", "discord", discord.DiscordAPI, _DISCORD, discord.BOT_TOKEN,
             _INTERACTION | {"expires_at": "0"}, 3000, _parts("bot")),
    Platform("`chatwoot`", "chatwoot", chatwoot.ChatwootAPI, _CHATWOOT, chatwoot.BOT_TOKEN,
             {"conversation": str(chatwoot.CONVERSATION), "inbox": "Channel::Whatsapp"}, 6000,
             (Step("ask", "toggle_typing_status"), *_parts("messages"))),
    Platform("`dingtalk`", "dingtalk", dingtalk.DingTalkAPI,
             {"client_id": dingtalk.CLIENT_ID, "client_secret": SECRET, "api_url": "{url}"},
             dingtalk.CLIENT_SECRET, _session, 20_000, _parts("session")),
    Platform("`teams`", "teams", teams.TeamsAPI, _TEAMS, APP_SECRET, _teams_thread, 50_000,
             (Step("ask", "typing"), *_edited("send", "update", "send"), *_parts("send"))),
    Platform("`teams-webhook`", "teams-webhook", webhooks.Workflow,
             {"token": SECRET, "reply_url": ADDRESS}, webhooks.TOKEN,
             {"conversation": webhooks.THREAD}, 15_000, _parts("post")),
    Platform("`wechat`", "wechat", wechat.WeChatAPI, _WECHAT, wechat.APP_SECRET,
             {"user": wechat.USER}, 3000, (Step("ask", "typing"), *_parts("send"))),
    Platform("`wecom`", "wecom", wecom_api.WeComAPI, _WECOM, wecom_api.SECRET, {"user": "alice"},
             3000, _parts("send")),
    Platform("`webhook`", "webhook", WebhookAPI, {"secret": SECRET, "url": "{url}/in"},
             "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", {}, 3000, (Step("end", "post"),)),
)  # fmt: skip
