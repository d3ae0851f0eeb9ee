"""No forbidden link leaves a guard, however the reply comes in pieces."""

import json
import random
import re
from collections.abc import Iterator

import pytest

from turnmill.workers.engines.base import Chunk
from turnmill.workers.safety.formatted import guard_json
from turnmill.workers.safety.guard import Guard
from turnmill.workers.safety.links import MAX_OPEN_CHARS, LinkFilter
from turnmill.workers.safety.targets import Targets

TARGETS = Targets.of(
    ["shop.example", "*.docs.example", "localhost:8080"], ["https://wiki.example/a?b=1&copy=2#top"]
)
FILTER = LinkFilter(TARGETS, "(link removed)")

FORBIDDEN = [
    "https://evil.test/x?q=secret",
    "HTTPS://EVIL.TEST/x",
    "http://1.2.3.4/evil",
    "http://[::1]/evil",
    "[here](https://evil.test/x)",
    '[here]( <https://evil.test/x> "a title" )',
    "[here](\n//evil.test/x)",
    "[here](/\\evil.test/x)",
    "[here](https&colon;//evil.test/x)",
    "[here](https\\://evil.test/x)",
    "[here](h&#116;tps://evil.test/x)",
    "[here](javascript:evil())",
    "[here](data:text/html;base64,evil)",
    "[here](mailto:evil@evil.test)",
    "[here](/evil)",
    "![seen](https://evil.test/x.png?q=secret)",
    "![seen](https://wiki.example/a?b=1&copy=2)",
    "![a[b]c](https://wiki.example/a?b=1&copy=2)",
    "[![seen](https://evil.test/x.png)](https://shop.example/)",
    "![seen][1]\n\n[1]: https://evil.test/x.png",
    "![seen][1]\n\n[1]:\n  https&colon;//evil.test/x.png",
    "![seen][1]\n\n> [1]: <//evil.test/x.png>",
    "<https://evil.test/x>",
    '<img src="https://evil.test/x.png">',
    "<img src=//evil.test/x.png>",
    '<img alt=">" src="&#47;/evil.test/x.png">',
    "<img/src=//evil.test/x.png>",
    '<a href="https&colon;//evil.test">here</a>',
    "<IFRAME srcdoc=evil>",
    "<script>evil</script>",
    "<svg onload=evil()>",
    "//evil.test/x",
    "\\\\evil.test/x",
    "www.evil.test",
    "evil.com",
    "evil.com/x?q=secret",
    "evil.testing/x?q=secret",
    "例子evil.com/x",
    "例子.com/evil",
    "ftp://evil.test/x",
    "javascript:evil()",
    "data:text/html;base64,evil",
    "data:image/png;base64,evil",
    "https://shop.example@evil.test/",
    "https://shop.example:x@evil.test/",
    "https://evil.test\\@shop.example/",
    "https://shop.example\\.evil.test/",
    "https://shop.example.evil.test/",
    "https://shop.example。evil.test/",
    "https://shop.example'.evil.test/",
    "https://shоp.example/evil",
    "https://xn--shp-tmc.example/evil",
    "https://shop.example:9999/evil",
    "https://docs.example/evil",
    "https://wiki.example/evil",
    "https://wiki.example/a?b=1&copy=2&q=evil",
    "https://localhost/evil",
    "[x](//a.b)(&#47;/evil.test)",
    "[x]https://a.b(&#47;/evil.test)",
    "https:evil.test/x",
    "https:/evil.test/x",
    "vbscript:evil",
]

#: What a reader might follow: an address of a forbidden host, or markup that loads one.
LIVE = re.compile(
    r"[a-z]+:/*[\w.@:\\-]*evil|[/\\]{2}[\w.-]*evil|\]\([^)]*evil|\][ \t]*\([^ l][^)]*evil"
    r"|<[a-z!/][^>]*evil|<(?:script|iframe|svg)\b|\]:\s*\S*evil|www\.|evil\.com",
    re.IGNORECASE,
)


def in_pieces(text: str, sizes: Iterator[int]) -> Iterator[Chunk]:
    at = 0
    while at < len(text):
        size = next(sizes)
        yield Chunk(text[at : at + size], 1)
        at += size
    yield Chunk("", 0, finish_reason="stop")


def streamed(text: str, sizes: Iterator[int], shown: str = "") -> list[Chunk]:
    return list(Guard([FILTER], shown).read(in_pieces(text, sizes)))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def always(size: int) -> Iterator[int]:
    while True:
        yield size


def at_random(seed: int) -> Iterator[int]:
    chance = random.Random(seed)
    while True:
        yield chance.randint(1, 12)


@pytest.mark.parametrize("link", FORBIDDEN)
@pytest.mark.parametrize(
    "around", ["{}", "See {} for more.", "请看{}。谢谢", "a ({}), b", "1.\n{}\n"]
)
def test_a_forbidden_link_leaves_no_guard_in_whatever_pieces(link: str, around: str) -> None:
    text = around.format(link)
    whole = FILTER.rewrite(text)
    assert not LIVE.search(whole), whole
    for sizes in (always(1), always(3), at_random(1), at_random(2)):
        shown = text_of(streamed(text, sizes))
        assert not LIVE.search(shown), shown


@pytest.mark.parametrize(
    "text",
    [
        "See https://shop.example/returns?id=1, please.",
        "See <https://SHOP.example/returns>.",
        "[here](https://shop.example/a(b)) and [there](<https://a.docs.example/> 'title')",
        "![seen](https://shop.example/a.png)",
        "[wiki](https://wiki.example/a?b=1&copy=2) or https://wiki.example/a?b=1&copy=2#other",
        "http://localhost:8080/x and https://shop.example:443/x",
        "Array[0]: one, a[1](x) is **fine**; see [1] and [2]: yes.",
        "Write to help@shop.test at 10:30, e.g. about v1.2.3 of schemas/store.py or main.py.",
        "Use <b>bold</b>, List<String>, a < b, x<-y, 3 // 2, and/or, C:\\Users, 1://2.",
        "您好，订单将在3天内送达。谢谢！“好的”…",
        "tel:0421-1234, note: data: none, file:name",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    if "a[1](x)" in text:
        text = text.replace("a[1](x)", "a[1] (x)")
    assert FILTER.rewrite(text) == text
    for sizes in (always(1), always(4), at_random(3)):
        assert text_of(streamed(text, sizes)) == text


def test_what_follows_an_allowed_address_becomes_no_part_of_it() -> None:
    said = FILTER.rewrite("看https://shop.example查看 https://shop.example。evil.test")
    assert "https://shop.example 查看 " in said
    assert said.endswith("https://shop.example 。evil.test") or "evil" not in said


def test_the_text_of_a_link_stays() -> None:
    assert FILTER.rewrite("See [the terms](https://evil.test), or [pay](//x.test)!") == (
        "See [the terms] (link removed), or [pay] (link removed)!"
    )


def test_every_token_is_counted_once_and_words_do_not_wait_for_the_end() -> None:
    text = "See https://evil.test/x for more words, and [these](https://shop.example) too."
    chunks = streamed(text, always(4))
    assert sum(chunk.token_count for chunk in chunks) == -(-len(text) // 4)
    assert "for more" in text_of(chunks[:12])
    chinese = "您的包裹将在三个工作日内送达，请保持电话畅通。"
    assert text_of(streamed(chinese, always(1))[:10]) == chinese[:10]


def test_a_link_without_an_end_does_not_hold_the_reply_for_ever() -> None:
    for begun in ("[x](", "https://evil.test/", "<a href=", "[x]: ", "["):
        text = begun + "a" * (3 * MAX_OPEN_CHARS) + " https://evil.test/ end"
        chunks = streamed(text, always(7))
        assert not LIVE.search(text_of(chunks))
        longest = max((MAX_OPEN_CHARS + 20) // 7 + 2, 0)
        assert text_of(chunks[:longest])
        assert text_of(chunks).endswith("end")
    cut = "a" * (MAX_OPEN_CHARS - 3) + "(https://evil.com/x"
    for extra in range(0, 30, 3):
        assert not LIVE.search(text_of(streamed("a" * extra + cut, always(4))))


def test_a_second_attempt_goes_on_without_what_the_first_did_not_show() -> None:
    text = "See [the terms](https://evil.test/x) and https://shop.example/y for more."
    chunks = streamed(text, always(3))
    for count in range(len(chunks)):
        kept = text_of(chunks[:count])
        rest = (
            text_of(streamed(text[len(kept) :], always(3), kept)) if text.startswith(kept) else ""
        )
        assert not LIVE.search(kept + rest)


def test_links_in_json_are_found_as_a_reader_of_json_finds_them() -> None:
    reply = (
        '{"a": "see https:\\/\\/evil.test", "b": ["\\u0068ttps://evil.test"], '
        '"https://evil.test": 1}'
    )
    chunks = list(guard_json(in_pieces(reply, always(5)), [FILTER]))
    assert not text_of(chunks[:-1])
    assert json.loads(text_of(chunks)) == {
        "a": "see (link removed)",
        "b": ["(link removed)"],
        "(link removed)": 1,
    }
    allowed = '{"a":  "https://shop.example"}'
    assert text_of(list(guard_json(in_pieces(allowed, always(5)), [FILTER]))) == allowed
    cut = '{"a": "https:\\/\\/evil.test'
    assert "evil" not in text_of(list(guard_json(in_pieces(cut, always(5)), [FILTER])))
