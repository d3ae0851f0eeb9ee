"""Markdown as Slack's mrkdwn: https://docs.slack.dev/messaging/formatting-message-text

Code stays as it is, but for `&`, `<` and `>`, which Slack reads everywhere. What a model writes can
mention nobody: every `<` of its own is escaped.
"""

import re

from turnmill.workers.delivery.markdown import open_fence

_LINK = re.compile(r"(!?)\[([^\[\]\n]*)\]\((?:&lt;)?([^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:&gt;)?"
                   r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?\)")  # fmt: skip
_AUTOLINK = re.compile(r"&lt;((?:https?|mailto):[^\s<>]+?)&gt;")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_BULLET = re.compile(r"^(\s*)[-*+]\s+(?:\[([ xX])\]\s+)?")
_QUOTE = re.compile(r"^ {0,3}((?:&gt; ?)+)")
_RULE = re.compile(r"^ {0,3}([-*_])(?: *\1){2,} *$")
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_BOTH = re.compile(r"\*\*\*(?=\S)(.+?)(?<=\S)\*\*\*")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])")
_STRUCK = re.compile(r"~~(?=\S)(.+?)(?<=\S)~~")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!~|])")

#: Stands for bold while italics are looked for; no reply has control characters (`storable`).
_STAR = "\x01"
#: Stands for a piece that is not to be translated.
_KEPT = re.compile("\x02(\\d+)\x03")


def to_mrkdwn(text: str) -> str:
    """Translate a whole message."""
    lines: list[str] = []
    opened: str | None = None
    table: list[str] = []
    for line in escape(text).split("\n"):
        was_open, opened = opened, open_fence(line if opened is None else f"{opened}\n{line}")
        if table and (was_open or not _ROW.match(line)):
            lines += _table(table)
            table = []
        if was_open or opened:
            # Slack would show the language as the first line of the code.
            lines.append("```" if not (was_open and opened) else line)
        elif _ROW.match(line):
            table.append(line)
        else:
            lines.append(_line(line))
    return "\n".join(lines + _table(table))


def escape(text: str) -> str:
    """Escape the three characters that Slack reads."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(rows: list[str]) -> list[str]:
    """Slack has no tables in mrkdwn; as code its columns stay columns."""
    return ["```", *rows, "```"] if len(rows) > 1 else [_inline(row) for row in rows]


def _line(line: str) -> str:
    if _RULE.match(line):
        return "———"
    if heading := _HEADING.match(line):
        plain = heading[1].replace("**", "").replace("__", "")
        return f"*{_inline(plain)}*" if plain else ""
    mark = ""
    if quote := _QUOTE.match(line):
        mark, line = ">", line[quote.end() :]
    if bullet := _BULLET.match(line):
        box = {None: "•", " ": "☐"}.get(bullet[2], "☑")
        mark, line = f"{mark}{bullet[1]}{box} ", line[bullet.end() :]
    return mark + _inline(line)


def _inline(text: str) -> str:
    """Translate what stands between spans of code."""
    shown: list[str] = []
    start = 0
    for code in _CODE.finditer(text):
        shown += [_styled(text[start : code.start()]), f"`{code[2].strip() or code[2]}`"]
        start = code.end()
    return "".join(shown) + _styled(text[start:])


def _styled(text: str) -> str:
    links: list[str] = []

    def keep(link: str) -> str:
        links.append(link)
        return f"\x02{len(links) - 1}\x03"

    def link(match: re.Match[str]) -> str:
        label, url = match[2] or match[3], match[3].replace("|", "%7C")
        return keep(f"<{url}|{label.replace('|', '¦')}>" if url else label)

    text = _LINK.sub(link, _ESCAPED.sub(lambda match: keep(match[1]), text))
    text = _AUTOLINK.sub(lambda match: keep(f"<{match[1]}>"), text)
    text = _BOTH.sub(rf"{_STAR}_\1_{_STAR}", text)
    text = _BOLD.sub(rf"{_STAR}\2{_STAR}", text)
    text = _ITALIC.sub(r"_\1_", text).replace(_STAR, "*")
    text = _STRUCK.sub(r"~\1~", text)
    return _back(text, links)


def _back(text: str, kept: list[str]) -> str:
    """Put kept pieces back; a link's label may have kept ones of its own."""
    while _KEPT.search(text):
        text = _KEPT.sub(lambda match: kept[int(match[1])], text)
    return text
