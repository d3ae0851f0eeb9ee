"""What users send on WhatsApp, Discord, Feishu, WeCom, WeChat, DingTalk and Teams, fetched as each
platform wants.

Each mock refuses what its platform refuses: a wrong token, an address that has expired, a key of
another kind, a client without a name.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.integration.media.conftest import BOT, Site
from tests.integration.media.making import photographed, tone
from turnmill.infra.mocks import dingtalk, discord, wechat, whatsapp
from turnmill.infra.mocks.dingtalk import DingTalkAPI
from turnmill.infra.mocks.discord import DiscordAPI
from turnmill.infra.mocks.feishu.api import APP_ID as FEISHU_APP
from turnmill.infra.mocks.feishu.api import APP_SECRET as FEISHU_SECRET
from turnmill.infra.mocks.feishu.api import FeishuAPI
from turnmill.infra.mocks.feishu.events import sign as sign_feishu
from turnmill.infra.mocks.feishu.payloads import Tenant
from turnmill.infra.mocks.sending import Signed
from turnmill.infra.mocks.serving import MockAPI
from turnmill.infra.mocks.teams import activities
from turnmill.infra.mocks.teams.api import TeamsAPI
from turnmill.infra.mocks.wechat import WeChatAPI
from turnmill.infra.mocks.wecom import api as wecom
from turnmill.infra.mocks.wecom import messages as wecom_messages
from turnmill.infra.mocks.wecom.api import WeComAPI
from turnmill.infra.mocks.whatsapp import WhatsAppAPI
from turnmill.producer.channels.base import KeysNeeded, Request
from turnmill.producer.channels.registry import CHANNELS
from turnmill.producer.converse import Kind, receive
from turnmill.schemas.channels.events import UserMessage
from turnmill.schemas.channels.loading import load_class
from turnmill.schemas.channels.policies import CHANNEL_POLICIES, Policies
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection
from turnmill.schemas.channels.teams import Services
from turnmill.schemas.channels.wechat import Sealer
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.files.opening import open_parts
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.fetching import Fetcher
from turnmill.workers.delivery.registry import create_delivery
from turnmill.workers.media.base import Hints, Transcript
from turnmill.workers.testing import InlineWorker

SETTINGS = DeliverySettings(timeout_s=5, lease_s=20)
AT_ONCE = Policies(quiet_s=0.0).over(CHANNEL_POLICIES)
KEY, TOKEN = "a" * 43, "made-up-token"
PHOTO = photographed("Order 4711")


class Readers:
    def transcribe(self, sound: bytes, hints: Hints, abort: threading.Event) -> Transcript:
        assert sound == tone()
        return Transcript(text="Where is my parcel?", confidence=0.9)

    def read(self, image: bytes, abort: threading.Event) -> str:
        return "Order 4711"


@dataclass
class Platform:
    """A channel, its mock, and what the mock's users do."""

    section: Any
    api: Any
    #: Keep a file, and build the request that tells of it: its kind, its bytes.
    send: Callable[[str, bytes], Signed]
    #: Forget the file that was sent last, as the platform does in time.
    expire: Callable[[], None]

    @property
    def parsed(self) -> Callable[[Signed], UserMessage]:
        channel = load_class(CHANNELS, "line", self.section)("line", self.section)

        def verify(request: Request) -> None:
            try:
                channel.verify(request)
            except KeysNeeded as needed:
                needed.fetching.result(10)
                channel.verify(request)

        def parse(signed: Signed) -> UserMessage:
            headers = {name.lower(): value for name, value in signed.headers.items()}
            request = Request("POST", headers, signed.body, time.time(), signed.query)
            verify(request)
            (event,) = channel.parse(request).events
            assert isinstance(event, UserMessage)
            return event

        return parse


#: What the sections name; undone after each test.
_environment = pytest.MonkeyPatch()


def secret(name: str, value: str) -> dict[str, str]:
    _environment.setenv(f"FETCHING_{name}", value)
    return {"env": f"FETCHING_{name}"}


def whatsapp_platform(api: WhatsAppAPI) -> Platform:
    section = WhatsAppSection.model_validate(
        {
            "kind": "whatsapp", "bot": BOT, "phone_number_id": whatsapp.NUMBER,
            "app_secret": secret("A", "s"), "verify_token": secret("B", "v"),
            "access_token": secret("C", whatsapp.TOKEN), "api_url": api.url,
        }
    )  # fmt: skip

    def send(kind: str, data: bytes) -> Signed:
        api.files["media1"] = data
        mime = "image/png" if kind == "image" else "audio/ogg; codecs=opus"
        given = {"type": kind, kind: {"id": "media1", "mime_type": mime, "sha256": "x"}}
        batch = whatsapp.batch(whatsapp.change(messages=[whatsapp.message(None, **given)]))
        return whatsapp.sign("s", whatsapp.encode(batch))

    return Platform(section, api, send, api.files.clear)


def discord_platform(api: DiscordAPI) -> Platform:
    section = DiscordSection.model_validate(
        {
            "kind": "discord", "bot": BOT, "application_id": discord.APPLICATION_ID,
            "public_key": discord.public_key("s"), "bot_token": secret("D", discord.BOT_TOKEN),
            "api_url": api.url,
        }
    )  # fmt: skip
    good_s = [86_400.0]

    def send(kind: str, data: bytes) -> Signed:
        mime = "image/png" if kind == "image" else "audio/ogg"
        attached = api.attach(data, mime, good_s=good_s[0])
        if kind == "image":
            payload = discord.command("ask", "Look", attachment=attached)
        else:
            payload = discord.about_message("", [attached])
        return discord.sign("s", discord.encode(payload))

    return Platform(section, api, send, lambda: good_s.__setitem__(0, -1.0))


def feishu_platform(api: FeishuAPI) -> Platform:
    section = FeishuSection.model_validate(
        {
            "kind": "feishu", "bot": BOT, "app_id": FEISHU_APP,
            "app_secret": secret("E", FEISHU_SECRET), "encrypt_key": secret("F", "k"),
            "api_url": api.url,
        }
    )  # fmt: skip
    tenant = Tenant()

    def send(kind: str, data: bytes) -> Signed:
        said = {"image_key": "img_1"} if kind == "image" else {"file_key": "f_1", "duration": 1}
        payload = tenant.message(said, kind)
        message_id = payload["event"]["message"]["message_id"]
        key = ("img_1", "image") if kind == "image" else ("f_1", "file")
        api.files[(message_id, *key)] = data
        return sign_feishu("k", json.dumps(payload).encode())

    return Platform(section, api, send, api.files.clear)


def sealed_platform(api: Any, section: Any, app_id: str, made: Any) -> Platform:
    sealer = Sealer(SecretStr(TOKEN), SecretStr(KEY), app_id)

    def send(kind: str, data: bytes) -> Signed:
        api.files["m1"] = data
        if kind == "image":
            fields = made.message("", MsgType="image", MediaId="m1", PicUrl="http://wx.qlogo.cn/1")
        else:
            fields = made.message("", MsgType="voice", MediaId="m1", Format="amr")
        del fields["Content"]
        signed: Signed = made.sign(sealer, wecom_messages.encode(fields))
        return signed

    return Platform(section, api, send, api.files.clear)


def wecom_platform(api: WeComAPI) -> Platform:
    section = WeComSection.model_validate(
        {
            "kind": "wecom", "bot": BOT, "corp_id": wecom.CORP_ID, "agent_id": wecom.AGENT_ID,
            "secret": secret("G", wecom.SECRET), "token": secret("H", TOKEN),
            "encoding_aes_key": secret("I", KEY), "api_url": api.url,
        }
    )  # fmt: skip
    return sealed_platform(api, section, wecom.CORP_ID, wecom_messages)


def wechat_platform(api: WeChatAPI) -> Platform:
    section = WeChatSection.model_validate(
        {
            "kind": "wechat", "bot": BOT, "app_id": wechat.APP_ID,
            "app_secret": secret("J", wechat.APP_SECRET), "token": secret("K", TOKEN),
            "encoding_aes_key": secret("L", KEY), "api_url": api.url,
        }
    )  # fmt: skip
    return sealed_platform(api, section, wechat.APP_ID, wechat)


def dingtalk_platform(api: DingTalkAPI) -> Platform:
    section = DingTalkSection.model_validate(
        {
            "kind": "dingtalk", "bot": BOT, "client_id": dingtalk.CLIENT_ID,
            "client_secret": secret("M", dingtalk.CLIENT_SECRET), "api_url": api.url,
        }
    )  # fmt: skip

    def send(kind: str, data: bytes) -> Signed:
        api.files["code+/="] = data
        said = {"downloadCode": "code+/="}
        if kind == "image":
            payload = dingtalk.message(msgtype="picture", content=said)
        else:
            payload = dingtalk.message(msgtype="audio", content={**said, "duration": 1000})
        return dingtalk.sign(dingtalk.CLIENT_SECRET, dingtalk.encode(payload))

    return Platform(section, api, send, api.files.clear)


def teams_platform(api: TeamsAPI) -> Platform:
    pytest.importorskip("jwt", reason="pip install 'turnmill[teams]'")
    section = TeamsSection.model_validate(
        {
            "kind": "teams", "bot": BOT, "app_id": activities.APP_ID,
            "app_secret": secret("N", activities.APP_SECRET), "api_url": api.url,
        }
    )  # fmt: skip
    chat = activities.Chat(api.service)

    def send(kind: str, data: bytes) -> Signed:
        if kind == "image":
            api.pictures["0-eus-d1"] = data
            attached = chat.picture(api.picture_url("0-eus-d1"))
        else:
            api.files["voice.m4a"] = data
            attached = [chat.file("voice.m4a", api.file_url("voice.m4a"))]
        body = activities.encode(chat.message("", attachments=attached))
        return activities.sign(body, activities.claims(api.service))

    def expire() -> None:
        api.pictures.clear()
        api.files.clear()

    return Platform(section, api, send, expire)


PLATFORMS: dict[str, tuple[type[MockAPI], Callable[[Any], Platform]]] = {
    "whatsapp": (WhatsAppAPI, whatsapp_platform),
    "discord": (DiscordAPI, discord_platform),
    "feishu": (FeishuAPI, feishu_platform),
    "wecom": (WeComAPI, wecom_platform),
    "wechat": (WeChatAPI, wechat_platform),
    "dingtalk": (DingTalkAPI, dingtalk_platform),
    "teams": (TeamsAPI, teams_platform),
}


@pytest.fixture(params=list(PLATFORMS))
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    api_class, make = PLATFORMS[request.param]
    with api_class() as api:
        yield make(api)


@pytest.fixture(autouse=True)
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("create_transcriber", "create_image_reader"):
        monkeypatch.setattr(f"turnmill.workers.media.opening.{name}", lambda *_: Readers())
    yield
    _environment.undo()


def fetcher_of(site: Site, **sections: Any) -> Fetcher:
    parts = open_parts(site.database, site.settings)
    channels = {name: create_delivery(name, each, SETTINGS) for name, each in sections.items()}
    return Fetcher(site.database, parts, channels)


def test_voice_and_images_are_fetched_and_answered(
    platform: Platform, site: Site, eventually: Callable[..., None]
) -> None:
    fetcher = fetcher_of(site, line=platform.section)
    with ExitStack() as stack:
        stack.enter_context(InlineWorker(site.settings))
        for kind, data, words in (
            ("audio", tone(), "Where is my parcel?"),
            ("image", PHOTO, "Order 4711"),
        ):
            event = platform.parsed(platform.send(kind, data))
            assert [file.kind for file in event.files] == [kind]
            place = event.address.model_copy(update={"thread": kind})
            event = event.model_copy(update={"address": place})
            calls = len(platform.api.calls)
            got = receive(site.database, "line", site.tenant_id, BOT, AT_ONCE, event)
            assert got.kind is Kind.ACCEPTED
            assert len(platform.api.calls) == calls  # nothing while the platform waits
            assert fetcher.fetch_next()

            def answered(words: str = words) -> bool:
                rows = site.database.run("SELECT content FROM replies")
                return any(words in row.content for row in rows)

            eventually(answered)


def test_a_message_with_text_is_answered_though_its_picture_is_refused(
    site: Site, eventually: Callable[..., None]
) -> None:
    denied = "Forbidden.AccessDenied.AccessTokenPermissionDenied"
    with DingTalkAPI() as api, InlineWorker(site.settings), capture_logs() as logs:
        platform = dingtalk_platform(api)
        fetcher = fetcher_of(site, line=platform.section)
        picture = {"type": "picture", "downloadCode": "code"}
        said = dingtalk.message(
            msgtype="richText", content={"richText": [{"text": "Look"}, picture]}
        )
        signed = dingtalk.sign(dingtalk.CLIENT_SECRET, dingtalk.encode(said))
        event = platform.parsed(signed)
        got = receive(site.database, "line", site.tenant_id, BOT, AT_ONCE, event)
        assert got.kind is Kind.ACCEPTED
        api.errors.append((403, denied))
        assert fetcher.fetch_next()
        eventually(lambda: site.database.run("SELECT 1 FROM replies"))
    (reply,) = site.database.run("SELECT content FROM replies")
    assert "Look" in reply.content and "[image]" in reply.content
    (given_up,) = (each for each in logs if each["event"] == "file.not_fetched")
    assert "qyapi_robot_sendmsg" in given_up["reason"]


def test_what_is_gone_too_large_or_slow_is_told_apart(platform: Platform) -> None:
    delivery: Any = create_delivery("line", platform.section, SETTINGS)
    (file,) = platform.parsed(platform.send("image", PHOTO)).files
    assert delivery.fetch(file.ref, len(PHOTO)) == PHOTO
    with pytest.raises(DeliveryRefused) as refused:
        delivery.fetch(file.ref, len(PHOTO) - 1)
    assert refused.value.reason == "too_large"
    for name in ("media", "download", "attachment", "resource"):
        platform.api.order(name, "429")
    with pytest.raises(ChannelUnavailable):
        delivery.fetch(file.ref, len(PHOTO))
    for orders in platform.api._orders.values():
        orders.clear()
    platform.expire()
    (gone,) = platform.parsed(platform.send("image", PHOTO)).files
    platform.expire()
    with pytest.raises(DeliveryRefused):
        delivery.fetch(gone.ref, len(PHOTO))


@pytest.mark.parametrize("platform", ["feishu", "wecom", "wechat", "dingtalk"], indirect=True)
def test_a_token_that_ended_early_is_fetched_anew(platform: Platform) -> None:
    delivery: Any = create_delivery("line", platform.section, SETTINGS)
    (file,) = platform.parsed(platform.send("audio", tone())).files
    assert delivery.fetch(file.ref, 100_000) == tone()
    platform.api.tokens.clear()
    assert delivery.fetch(file.ref, 100_000) == tone()


@pytest.mark.parametrize("platform", ["whatsapp", "discord"], indirect=True)
def test_nothing_is_fetched_from_another_host_than_the_platforms(platform: Platform) -> None:
    delivery: Any = create_delivery("line", platform.section, SETTINGS)
    (file,) = platform.parsed(platform.send("audio", tone())).files
    platform.api.lookaside_url = "https://lookaside.fbsbx.com.a.example"
    ref = file.ref.replace(platform.api.url, "https://cdn.discordapp.com.a.example")
    with pytest.raises(DeliveryRefused, match="not on the platform"):
        delivery.fetch(ref, 100_000)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.dingtalk.com.a.example/x",
        "http://aliyuncs.com.a.example/x",
        "https://notdingtalk.com/x",
        "http://169.254.169.254/latest",
        "https://api.dingtalk.com:8443/x",
        "https://a@api.dingtalk.com/x",
        "https://[/x",
        "",
    ],
)
def test_dingtalk_s_files_are_fetched_from_its_hosts_alone(url: str) -> None:
    with DingTalkAPI() as api:
        platform = dingtalk_platform(api)
        delivery: Any = create_delivery("line", platform.section, SETTINGS)
        (file,) = platform.parsed(platform.send("image", PHOTO)).files
        api.file_url = url
        with pytest.raises(DeliveryRefused, match="not on the platform"):
            delivery.fetch(file.ref, 100_000)


@pytest.mark.parametrize(
    ("url", "asked_for"),
    [
        ("http://a.oss-cn-x.aliyuncs.com/res/", "https://a.oss-cn-x.aliyuncs.com/res/"),
        ("http://a.oss-cn-x.aliyuncs.com:80/res/", "https://a.oss-cn-x.aliyuncs.com/res/"),
        ("https://a.aliyuncs.com:443/res/", "https://a.aliyuncs.com:443/res/"),
        ("https://a.aliyuncs.com/?u=http://b/res/", "https://a.aliyuncs.com/?u=http://b/res/"),
    ],
)
def test_dingtalk_s_files_come_encrypted_though_their_address_is_not(
    url: str, asked_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public issue names such an address: `http://….oss-cn-zhangjiakou.aliyuncs.com/…`."""
    asked: list[str] = []

    def download(platform: str, url: str, headers: dict[str, str], *_: object) -> bytes:
        asked.append(url)
        assert headers == {}
        return PHOTO

    monkeypatch.setattr("turnmill.workers.delivery.dingtalk.download", download)
    with DingTalkAPI() as api:
        platform = dingtalk_platform(api)
        delivery: Any = create_delivery("line", platform.section, SETTINGS)
        (file,) = platform.parsed(platform.send("image", PHOTO)).files
        api.file_url = url
        assert delivery.fetch(file.ref, 100_000) == PHOTO
    (found,) = asked
    assert found.startswith(asked_for)


@pytest.mark.parametrize(
    ("url", "is_picture", "is_file"),
    [
        ("https://smba.trafficmanager.net/emea/v3/attachments/0-eus-d1/views/original", 1, 0),
        ("https://emea.ng.msg.teams.microsoft.com/v3/attachments/1/views/original", 1, 0),
        ("https://smba.trafficmanager.net/emea/v3/conversations/a/activities", 0, 0),
        ("https://contoso-my.sharepoint.com/personal/a/_layouts/15/download.aspx?tempauth=x", 0, 1),
        ("http://contoso-my.sharepoint.com/download.aspx", 0, 0),
        ("https://contoso.sharepoint.com.a.example/x", 0, 0),
        ("https://evil.trafficmanager.net/v3/attachments/1/views/original", 0, 0),
        ("https://a@smba.trafficmanager.net/v3/attachments/1/views/original", 0, 0),
        ("https://a.example/v3/attachments/1/views/original?smba.trafficmanager.net", 0, 0),
        ("http://127.0.0.1/v3/attachments/1/views/original", 0, 0),
    ],
)
def test_teams_files_are_fetched_from_microsoft_alone(
    url: str, is_picture: int, is_file: int
) -> None:
    with TeamsAPI() as api:
        section = teams_platform(api).section.model_copy(update={"api_url": None})
    services = Services.of(section)
    assert (services.is_picture(url), services.is_file(url)) == (bool(is_picture), bool(is_file))
    if not is_picture and not is_file:
        delivery: Any = create_delivery("line", section, SETTINGS)
        with pytest.raises(DeliveryRefused, match="not on the platform"):
            delivery.fetch(url, 100)


def test_onedrive_sees_no_token_and_a_token_that_ended_is_fetched_anew() -> None:
    with TeamsAPI() as api:
        platform = teams_platform(api)
        delivery: Any = create_delivery("line", platform.section, SETTINGS)
        (voice,) = platform.parsed(platform.send("audio", tone())).files
        assert delivery.fetch(voice.ref, 100_000) == tone()  # the mock refuses a token
        assert api.count("token") == 0
        (picture,) = platform.parsed(platform.send("image", PHOTO)).files
        for _ in range(2):
            assert delivery.fetch(picture.ref, len(PHOTO)) == PHOTO
            api.tokens.clear()
        assert api.count("token") == 2


def test_teams_asks_to_try_a_picture_again() -> None:
    with TeamsAPI() as api:
        platform = teams_platform(api)
        delivery: Any = create_delivery("line", platform.section, SETTINGS)
        (picture,) = platform.parsed(platform.send("image", PHOTO)).files
        api.errors.append((412, "PreconditionFailed"))
        with pytest.raises(ChannelUnavailable):
            delivery.fetch(picture.ref, len(PHOTO))
        assert delivery.fetch(picture.ref, len(PHOTO)) == PHOTO


def test_a_stopping_process_gives_back_the_file_that_it_fetches(
    site: Site, eventually: Callable[..., None]
) -> None:
    with WhatsAppAPI() as api, InlineWorker(site.settings):
        line = whatsapp_platform(api)
        event = line.parsed(line.send("audio", tone()))
        receive(site.database, "line", site.tenant_id, BOT, AT_ONCE, event)
        held = api.order("media", "before")
        stopping, other = (fetcher_of(site, line=line.section) for _ in range(2))
        stopping.start()
        try:
            assert held.reached.wait(10)
            stopping.close()
            (row,) = site.database.run(
                "SELECT fetches, fetch_at <= clock_timestamp() AS is_due FROM files"
            )
            assert (row.fetches, row.is_due) == (0, True)
            # What the stopped one still does changes nothing.
            stale = other._take(["line"])
            assert stale is not None
            (row,) = site.database.run("SELECT fetch_at FROM files")
            other._again(stale._replace(leased_until=datetime.now(UTC)), ChannelUnavailable("x"))
            assert site.database.run("SELECT fetch_at FROM files") == [row]
        finally:
            held.go.set()
        eventually(lambda: not stopping._busy)


def test_a_platform_is_not_asked_again_before_it_wants_to_be(site: Site) -> None:
    with WhatsAppAPI() as api, InlineWorker(site.settings):
        line = whatsapp_platform(api)
        event = line.parsed(line.send("audio", tone()))
        receive(site.database, "line", site.tenant_id, BOT, AT_ONCE, event)
        fetcher = fetcher_of(site, line=line.section)
        api.order("media", "500")
        assert fetcher.fetch_next()
        site.database.run("UPDATE files SET fetch_at = clock_timestamp()")
        asked = ChannelUnavailable("It asks for an hour.", retry_after_s=3600.0)
        owed = fetcher._take(["line"])
        assert owed is not None
        fetcher._again(owed, asked)
        assert not fetcher.fetch_next()
        (row,) = site.database.run(
            "SELECT fetches, extract(epoch FROM fetch_at - clock_timestamp())::float AS wait_s "
            "FROM files"
        )
        assert row.fetches == 2
        assert 3500 < row.wait_s <= 3600
        site.database.run("UPDATE files SET fetch_at = clock_timestamp()")
        assert fetcher.fetch_next()
        assert site.database.run("SELECT 1 FROM files WHERE source IS NULL")


def test_a_file_that_postgres_refuses_to_change_holds_up_no_other(site: Site) -> None:
    with WhatsAppAPI() as api, InlineWorker(site.settings), capture_logs() as logs:
        line = whatsapp_platform(api)
        fetcher = fetcher_of(site, line=line.section)
        for number in range(2):
            event = line.parsed(line.send("audio", tone()))
            place = event.address.model_copy(update={"thread": str(number)})
            changed = {"address": place, "event_id": f"{event.event_id}{number}"}
            event = event.model_copy(update=changed)
            receive(site.database, "line", site.tenant_id, BOT, AT_ONCE, event)
        (first, second) = site.database.run("SELECT id FROM files ORDER BY fetch_at")
        site.database.run(
            "ALTER TABLE files ADD CONSTRAINT refuses "
            f"CHECK (id <> '{first.id}' OR fetches = 0) NOT VALID"
        )
        assert [fetcher.fetch_next() for _ in range(2)] == [True, False]
    fetched = site.database.run("SELECT id FROM files WHERE source IS NULL")
    assert [row.id for row in fetched] == [second.id]
    told = [log["file_id"] for log in logs if log["event"] == "file.sweep_failed"]
    assert told == [first.id.hex]


def test_a_slow_platform_holds_up_its_own_files_alone(
    site: Site, eventually: Callable[..., None]
) -> None:
    with WhatsAppAPI() as slow_api, WeComAPI() as quick_api:
        slow, quick = whatsapp_platform(slow_api), wecom_platform(quick_api)
        held = slow_api.order("media", "before")
        fetcher = fetcher_of(site, slow=slow.section, quick=quick.section)
        with InlineWorker(site.settings):
            for name, each in (("slow", slow), ("quick", quick)):
                for number in range(2):
                    event = each.parsed(each.send("audio", tone()))
                    place = {"channel": name, "thread": f"{name}{number}"}
                    changed = {"address": event.address.model_copy(update=place)}
                    changed["event_id"] = f"{event.event_id}{number}"
                    event = event.model_copy(update=changed)
                    receive(site.database, name, site.tenant_id, BOT, AT_ONCE, event)

            def fetched() -> int:
                rows = site.database.run("SELECT 1 FROM files WHERE source IS NULL")
                return len(rows)

            fetcher.start()
            try:
                assert held.reached.wait(10)
                eventually(lambda: fetched() == 2)
                # One file of a channel at a time: the other one waits with it.
                assert slow_api.count("media") == 0
                held.go.set()
                eventually(lambda: fetched() == 4)
            finally:
                held.go.set()
                fetcher.close()
