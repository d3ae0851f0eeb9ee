"""Removes links from a text, but for those to allowed addresses.

What may read a reply is unknown: Markdown, HTML, a channel that makes links of bare names. So all
that one of them takes for a link is one here. Markdown's inline links and images, addresses with
and without a scheme, and names of hosts are replaced. Whatever else could become a link is broken
by a space: an HTML tag with attributes, Markdown's definitions of references.

https://spec.commonmark.org/0.31.2/#links, https://github.github.com/gfm/#autolinks-extension-,
https://html.spec.whatwg.org/multipage/parsing.html#tag-open-state
"""

import re
from dataclasses import dataclass

from turnmill.workers.safety.targets import Targets

#: Characters of a link that is not closed yet, for which the text after it waits.
MAX_OPEN_CHARS = 2048
#: Characters in which the bracket is looked for that opens a link.
LONGEST_LABEL = 512

#: End of a sentence, or of what stands around an address.
_CJK_MARKS = "，。；：！？、）】》」』”’…"
#: Characters of an address.
_IN = rf"[^\s<>\"'`|{_CJK_MARKS}]"
#: At the end of an address, part of the sentence around it.
_TRAILING = ".,;:!?)]}*_~"

#: Ends of hosts that channels make a link of without a scheme or a path.
_ENDS = (
    "com|net|org|edu|gov|mil|int|info|biz|io|ai|app|dev|xyz|top|site|online|shop|store|club|live|"
    "link|click|page|pages|cloud|tech|space|website|blog|wiki|news|me|cc|tv|co|gg|ly|to|sh|im|is|"
    "cn|hk|tw|jp|kr|sg|in|ru|su|ua|pl|de|at|ch|fr|it|es|nl|be|se|no|dk|fi|cz|pt|uk|us|eu|ca|au|"
    "nz|br|mx|ar|za|ng|tk|ml|ga|cf|gq|pw|ws|onion|zip|mov"
)

#: Nothing here looks further than a bounded number of characters for what does not come: the text
#: may be made to be slow. A longer name of a host is found by its last labels.
_FOUND = re.compile(
    rf"""
    \]\(\s*+(?P<inline><[^<>\n]*>|[^\s()<>]*(?:\([^\s()]*\)[^\s()]*)*)
        (?:\s++(?:(?:"[^"]*"|'[^']*'|\([^()]*\))\s*+)?)?\)
    | (?P<opening>\]\()
    | \]:(?P<defined>[ \t]*+\n?[ \t>]*+<?[^\s>]{{1,{MAX_OPEN_CHARS}}})
    | <(?P<auto>[A-Za-z][A-Za-z0-9+.\-]{{1,31}}:[^\s<>]*)>
    | (?P<tag><)(?=[A-Za-z/!?])(?!/?(?!(?i:script|style|iframe|object|embed|svg|math|base|form|meta|
        link|frame|frameset|applet|template)\b)[A-Za-z][A-Za-z0-9]*\s*/?>)
    | (?P<bare>
        [A-Za-z][A-Za-z0-9+.\-]{{0,30}}:[/\\]{{2}}{_IN}{{0,{MAX_OPEN_CHARS}}}
        | (?i:https?):[/\\]?\w{_IN}{{0,{MAX_OPEN_CHARS}}}
        | (?i:javascript|vbscript|blob|mailto):{_IN}{{1,{MAX_OPEN_CHARS}}}
        | (?i:data):[\w.+-]+/[\w.+-]+[;,]{_IN}{{0,{MAX_OPEN_CHARS}}}
        | (?<![A-Za-z0-9_/\\])[/\\]{{2}}[\w-]++(?:\.[\w-]++)+{_IN}{{0,{MAX_OPEN_CHARS}}}
        | (?<![A-Za-z0-9_@.-])(?i:www)\.{_IN}{{1,{MAX_OPEN_CHARS}}}
        | (?:(?<![\w@])|(?<=[^\x00-\x7f]))(?:[\w-]{{1,63}}+\.){{1,10}}(?i:{_ENDS})(?![A-Za-z0-9_-])
            (?:[:/?\#\\]{_IN}{{0,{MAX_OPEN_CHARS}}})?
        | (?<=[^\x00-\x7f\s])\.(?:[\w-]{{1,63}}+\.){{0,10}}(?i:{_ENDS})(?![A-Za-z0-9_-])
            (?:[:/?\#\\]{_IN}{{0,{MAX_OPEN_CHARS}}})?
        | (?<![\w@/.-])(?:[\w-]{{1,63}}\.)+[A-Za-z]{{2,24}}[/?]{_IN}{{0,{MAX_OPEN_CHARS}}}
    )
    """,
    re.VERBOSE,
)

#: What begins an address that does not end before a space.
_BEGUN = re.compile(r"(?i:https?:|www\.)|[/\\]{2}|\]\(|<")
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
_PLAIN_WORD = re.compile(r"\s*[\w\-*_`'\"$]+[.,;:!?)]*")
_ASCII = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class LinkFilter:
    """Removes links to addresses that are not among the targets."""

    targets: Targets
    #: Stands in the place of a link.
    removed: str

    def open_at(self, text: str) -> int:
        """Return where the last piece begins that more text may make a link of."""
        word = max(text.rfind(space) for space in " \n\t\r\f\v\u00a0") + 1
        at = max(word - 1, 0)
        if not _BEGUN.search(text, word):
            inside = [found.end() for found in _CJK.finditer(text, word)]
            at = inside[-1] if inside else at
        for opening in ("](", "]:"):
            begun = text.rfind(opening)
            if begun >= 0 and not self._is_whole(text, begun):
                at = min(at, begun)
        return at

    def _is_whole(self, text: str, begun: int) -> bool:
        """Whether nothing that follows changes what begins here."""
        if "\n\n" in text[begun:]:
            return True
        found = _FOUND.match(text, begun)
        return found is not None and not found["opening"] and found.end() < len(text)

    def rewrite(self, text: str, before: str = "") -> str:
        """Return the text without forbidden links; `before`: what was shown before it."""
        whole, done, pieces = before + text, len(before), []
        while found := _FOUND.search(whole, done):
            shown, rest_at = self._judged(found, whole)
            pieces += [whole[done : found.start()], shown]
            done = rest_at
            if shown.endswith(" ") and rest_at < found.end():
                # What is left of it begins a word.
                whole, done = " " + whole[rest_at:], 1
        return "".join([*pieces, whole[done:]])

    def _judged(self, found: re.Match[str], whole: str) -> tuple[str, int]:
        """What is shown of a link, and where the text begins that is yet to be looked at."""
        match found.lastgroup:
            case "defined":
                return self._defined(found)
            case "bare":
                return self._bare(found, whole)
        return self._marked(found, whole), found.end()

    def _marked(self, found: re.Match[str], whole: str) -> str:
        match found.lastgroup:
            case "inline":
                address = found["inline"].removeprefix("<").removesuffix(">")
                kept = self.targets.allow(address, is_image=True) or (
                    self.targets.allow(address) and not _is_image(whole, found.start())
                )
                return found[0] if kept else f"] {self.removed}"
            case "opening":
                return "] ("
            case "auto":
                return found[0] if self.targets.allow(found["auto"]) else self._gap(found, whole)
        return "< "

    def _defined(self, found: re.Match[str]) -> tuple[str, int]:
        """What a reference stands for; other text after a bracket and a colon stays as it is."""
        said = found["defined"]
        address = said.strip(" \t\n>").removeprefix("<")
        if _PLAIN_WORD.fullmatch(said) or self.targets.allow(address, is_image=True):
            return found[0], found.end()
        return "] :", found.start("defined")

    def _bare(self, found: re.Match[str], whole: str) -> tuple[str, int]:
        address = found[0].rstrip(_TRAILING)
        rest = found[0][len(address) :]
        if self.targets.allow(address):
            return address + rest + _parted(whole[found.end() : found.end() + 1]), found.end()
        ascii_part = _ASCII.match(address)
        if ascii_part and ascii_part.end() < len(address) and self.targets.allow(ascii_part[0]):
            return f"{ascii_part[0]} ", found.start() + ascii_part.end()
        return self._gap(found, whole) + rest, found.end()

    def _gap(self, found: re.Match[str], whole: str) -> str:
        """After a bracket, what is in brackets would be the address of a link."""
        is_after_bracket = whole.endswith("]", 0, found.start())
        return f" {self.removed}" if is_after_bracket else self.removed


def _parted(follower: str) -> str:
    """A space, where a reader may take the next character for a part of the address."""
    return " " if follower and follower not in ' \t\r\n\f\v<>"' else ""


def _is_image(text: str, end: int) -> bool:
    """Whether an exclamation mark stands before the bracket that is closed at `end`.

    A bracket that was opened too long ago to be seen may have one.
    """
    depth = 0
    for at in range(end, max(end - LONGEST_LABEL, -1), -1):
        depth += {"]": 1, "[": -1}.get(text[at], 0)
        if depth == 0:
            return at > 0 and text[at - 1] == "!"
    return True
