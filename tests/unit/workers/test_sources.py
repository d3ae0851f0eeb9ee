"""Below a reply stand the sources that it cites, and a title is nothing but words anywhere."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnmill.schemas.citations.sources import ReplySource
from turnmill.workers.delivery.chatwoot.texts import to_content
from turnmill.workers.delivery.dingtalk import to_markdown as to_dingtalk
from turnmill.workers.delivery.discord import to_discord
from turnmill.workers.delivery.feishu.cards import to_markdown as to_feishu
from turnmill.workers.delivery.slack.mrkdwn import to_mrkdwn
from turnmill.workers.delivery.teams.markdown import to_teams
from turnmill.workers.delivery.telegram.html import to_html
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.delivery.texts.sources import MAX_TITLE_CHARS, plain_title, sources_below
from turnmill.workers.delivery.whatsapp import to_whatsapp

URL = "https://help.example/returns?a=1&b=2"
CHANNELS = {
    "slack": to_mrkdwn, "telegram": to_html, "discord": to_discord, "teams": to_teams,
    "feishu": to_feishu, "dingtalk": to_dingtalk, "whatsapp": to_whatsapp, "wechat": to_plain,
    "chatwoot": to_content,
}  # fmt: skip
#: What links to the title's document, by channel.
LINKS = {
    "slack": "<https://help.example/returns?a=1&amp;b=2|Returns>",
    "telegram": '<a href="https://help.example/returns?a=1&amp;b=2">Returns</a>',
    "discord": f"[Returns]({URL})",
    "teams": f"[Returns]({URL})",
    "feishu": f"[Returns]({URL})",
    "dingtalk": f"[Returns]({URL})",
    "whatsapp": f"Returns ({URL})",
    "wechat": f"Returns ({URL})",
    "chatwoot": f"[Returns]({URL})",
}


def source(
    index: int, title: str = "Returns", url: str | None = URL, *, cited: bool = True
) -> ReplySource:
    return ReplySource(
        index=index, document_id="d", uri="returns.md", url=url, title=title, version=1,
        cited=cited, snippet="",
    )  # fmt: skip


def test_only_cited_sources_stand_below_a_reply() -> None:
    sources = (source(1), source(2, cited=False), source(3, "Shipping", None))
    assert sources_below("Yes [1][3].", sources, "Sources:") == (
        f"\n\nSources:\n- [1] [Returns]({URL})\n- [3] Shipping"
    )
    assert sources_below("Yes.", (source(1, cited=False),), "Sources:") == ""
    assert sources_below("Yes.", (), "Sources:") == ""


def test_sources_do_not_stand_in_a_code_block_that_a_reply_left_open() -> None:
    below = sources_below("See [1]:\n```python\nx = 1", (source(1),), "Sources:")
    assert below.startswith("\n```\n\nSources:")


@pytest.mark.parametrize("channel", CHANNELS)
def test_each_channel_links_a_source_in_its_own_form(channel: str) -> None:
    shown = CHANNELS[channel](sources_below("", (source(1),), "Sources:"))
    assert "[1] " in shown
    assert LINKS[channel] in shown


HOSTILE = (
    "](https://evil.example) [x](https://evil.example)",
    "https://evil.example/login",
    "evil.example",
    "<https://evil.example|Bank>",
    '<a href="https://evil.example">Bank</a>',
    "<!channel> <@U1> @everyone @here",
    "<at id=all></at>",
    "{{ contact.email }} {% raw %}",
    "/reset dtmd:x weixin://bizmsgmenu",
    "`code` ![x](https://evil.example/p.png)",
    "\u202egnp.exe\nSources:\n- [2] x",
)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("title", HOSTILE)
def test_a_title_brings_no_link_mention_or_markup_along(channel: str, title: str) -> None:
    for url in (None, URL):
        shown = CHANNELS[channel](sources_below("", (source(1, title, url),), "Sources:"))
        rest = shown.replace(URL, "").replace(URL.replace("&", "&amp;"), "")
        for active in ("https://", "evil.example", "<!", "<@", "@everyone", "<at", "</", "weixin:"):
            if active != "</" or channel != "telegram":
                assert active not in rest
        assert not re.search(r"dtmd:|/reset|`|!\[|\{\{ c|\{%|\u202e", rest)
        assert rest.count("\n- ") + rest.count("\n• ") == 1
        assert rest.count("](") + rest.count("<a ") <= (url is not None)


@given(st.text())
def test_a_title_is_one_short_line_of_visible_words(title: str) -> None:
    plain = plain_title(title)
    assert plain
    assert not re.search(r"[\n\r\[\]<>`|\\*{}]", plain)
    assert len(plain.replace("\u2060", "")) <= MAX_TITLE_CHARS


def test_an_address_cannot_end_its_link() -> None:
    url = "https://help.example/a_(b)?q=[x]|<y>"
    below = sources_below("", (source(1, url=url),), "Sources:")
    assert below.endswith("(https://help.example/a_%28b%29?q=%5Bx%5D%7C%3Cy%3E)")
