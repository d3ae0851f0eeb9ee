"""The platforms of the contract suite: what each sends, and who judges its signatures."""

from .base import Peer
from .chatwoot import ChatwootPeer
from .dingtalk import DingTalkPeer
from .discord import DiscordPeer
from .feishu import FeishuPeer
from .slack import SlackPeer
from .teams import TeamsPeer
from .teams_webhook import TeamsWebhookPeer
from .telegram import TelegramPeer
from .webhook import WebhookPeer
from .wechat import WeChatPeer
from .wecom import WeComPeer
from .whatsapp import WhatsAppPeer

PEERS: dict[str, type[Peer]] = {
    "chatwoot": ChatwootPeer,
    "dingtalk": DingTalkPeer,
    "discord": DiscordPeer,
    "feishu": FeishuPeer,
    "slack": SlackPeer,
    "teams": TeamsPeer,
    "teams-webhook": TeamsWebhookPeer,
    "telegram": TelegramPeer,
    "webhook": WebhookPeer,
    "wechat": WeChatPeer,
    "wecom": WeComPeer,
    "whatsapp": WhatsAppPeer,
}
