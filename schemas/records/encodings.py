"""Find a text file's encoding: UTF-8 unless its bytes say otherwise.

A wrong guess would put garbled questions to a model. So an older encoding is taken only where
the file has enough text to tell; otherwise the file is refused, with the likely one named.
"""

import codecs
import io
from dataclasses import dataclass, field
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records import base
from turnmill.schemas.records.text import open_bytes

UTF_8 = "utf-8"

#: Shares of letters that are as frequent as in a language, this far apart, tell nothing: `£20` of
#: cp1252 is `Ł20` in cp1250, a Polish letter among English ones.
_SAME_COHERENCE = 0.05

#: Where two encodings fit a text equally well, the earlier one is taken.
_OLDER = ("cp1252", "gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1250")

#: Bytes beyond ASCII from which a guess is taken: some thirty Chinese characters, or sixty umlauts.
ENOUGH_BYTES = 64

#: Text that is looked at to guess.
_SAMPLE_BYTES = 64 * 1024

#: Bytes that may be a part of a longer character in the older encodings.
_PARTS = bytes(range(0x30, 0x100))

#: The bytes of a character in UTF-8 after its first.
_CONTINUING = bytes(range(0x80, 0xC0))


@dataclass(slots=True)
class _Survey:
    """How a file's lines beyond ASCII decode as UTF-8."""

    good: int = 0
    bad: int = 0
    #: Line, position and value of the first byte that is not UTF-8.
    first: tuple[int, int, int] = (0, 0, 0)
    #: Lines that are not UTF-8.
    sample: bytearray = field(default_factory=bytearray)
    #: The piece before ended within a character: lines that end with CR come in pieces.
    is_cut: bool = False

    def look_at(self, number: int, raw: bytes) -> None:
        is_whole = len(raw) < base.MAX_LINE_BYTES
        if self.is_cut:
            raw = raw[:3].lstrip(_CONTINUING) + raw[3:]
            self.is_cut = False
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            if not is_whole and error.reason == "unexpected end of data":
                self.is_cut = True
                self.good += 1
                return
            self.bad += 1
            self.first = (
                self.first if self.first[0] else (number, error.start + 1, raw[error.start])
            )
            self.sample += _beginning(raw, _SAMPLE_BYTES - len(self.sample))
        else:
            self.good += 1


def check_encoding(name: str) -> str:
    """Python's name of a text encoding. Raises `InvalidInput`."""
    try:
        # Refuses codecs that are not of text, such as base64.
        known = codecs.lookup(io.TextIOWrapper(io.BytesIO(), name).encoding).name
    except (LookupError, ValueError):
        raise InvalidInput(
            f"'{name[:80]}' is no encoding that Python knows. Common ones: utf-8, utf-16, "
            f"{', '.join(_OLDER)}, mac-roman, cp850."
        ) from None
    return UTF_8 if known == "utf-8-sig" else known


def find_encoding(path: Path) -> str:
    """The encoding of a text file. Raises `InvalidInput` where its bytes do not tell."""
    survey = _Survey()
    with open_bytes(path) as file:
        for number, raw in enumerate(
            iter(lambda: file.readline(base.MAX_LINE_BYTES), b""), start=1
        ):
            if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "utf-16"
            if not raw.isascii():
                survey.look_at(number, raw)
    if not survey.bad or survey.good > survey.bad:
        # A few damaged lines in a file of UTF-8 are named with the other problems.
        return UTF_8
    guess, evidence = _guess(bytes(survey.sample)), sum(b > 127 for b in survey.sample)
    if guess and evidence >= ENOUGH_BYTES:
        return guess
    raise InvalidInput(_describe(path, survey, guess, evidence))


def _beginning(raw: bytes, size: int) -> bytes:
    """At most `size` bytes, and no cut character: a sample that ends in one fits no encoding."""
    return raw if len(raw) <= size else raw[:size].rstrip(_PARTS)


def _guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    candidates = [
        (match.chaos, -match.coherence, _OLDER.index(name))
        for match in from_bytes(sample, cp_isolation=list(_OLDER))
        for name in match.could_be_from_charset
        if name in _OLDER
    ]
    if not candidates:
        return None
    chaos, coherence, _ = min(candidates)
    alike = (c for c in candidates if c[0] == chaos and c[1] <= coherence + _SAME_COHERENCE)
    return _OLDER[min(index for *_, index in alike)]


def _describe(path: Path, survey: _Survey, guess: str | None, evidence: int) -> str:
    line, position, byte = survey.first
    what = f"'{path.name}' is not UTF-8 (line {line}, byte {position} is 0x{byte:02x})."
    if guess is None:
        return f"{what} Save it as UTF-8, or name its encoding: --encoding NAME."
    return (
        f"{what} It is probably {guess}, but {evidence} bytes beyond ASCII are too few to be sure. "
        f"Save it as UTF-8, or read it with: --encoding {guess}"
    )
