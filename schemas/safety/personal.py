"""Personal data of a known form: addresses of e-mail, accounts, cards, telephones, identities.

Each form is a pattern and a checksum, where there is one. Names and streets have no form and stay.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.safety.findings import Finding, apart, masked

#: A letter or digit of a script with spaces: what stands before an address in Chinese is the
#: sentence.
_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_LABEL = rf"(?:{_LETTER}|-)"
#: In this order: what an earlier form found, a later one does not see.
#: Runs over what is no address too: each character is looked at once, however long its word is.
_EMAIL = re.compile(rf"(?:{_LETTER}|[.+%-])++(@{_LABEL}++(?:\.{_LABEL}++)+)?")
#: Of one machine; and all in Chinese.
_BROAD_EMAILS = (
    _EMAIL,
    re.compile(rf"(?:{_LETTER}|[.+%-])++(@{_LABEL}++)?"),
    re.compile(r"[\w.+%-]++(@[\w-]++(?:\.[\w-]++)*)?"),
)
#: ISO 13616: country, two check digits, 11 to 30 letters and digits, perhaps in groups of four.
_IBAN = re.compile(
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b|"
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}[A-Z0-9]{11,30}(?![A-Za-z0-9])",
    re.ASCII | re.IGNORECASE,
)
#: Without its checksum, words in lower case look like one: here its groups have digits.
_BROAD_IBAN = re.compile(
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4})(?: ?(?=[A-Z]{0,3}\d)[A-Z0-9]{4}){1,6}"
    r"(?: ?[A-Z0-9]{1,3})?\b",
    re.ASCII | re.IGNORECASE,
)
#: GB 11643-1999: region, day of birth, number, check digit. Old regions are no longer listed, and
#: their numbers are still in use.
_CN_ID = re.compile(
    r"(?<![A-Za-z0-9])[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
    r"(?![A-Za-z0-9])",
    re.ASCII,
)
_CARD = re.compile(r"(?<![\w-])[2-6]\d{3}(?:[ -]?\d){8,15}(?!\d)", re.ASCII)
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII)
#: A mobile number of China, also without its country.
_CN_MOBILE = re.compile(r"(?<![\w+])(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?!\d)", re.ASCII)


def _host(letter: str) -> re.Pattern[str]:
    """A host, or a machine's address, with something behind it: a name alone is nobody's."""
    label = rf"(?:{letter}|-)"
    return re.compile(
        rf"(?<!{letter})(?<![@/.-])(?:(?:{label}{{1,63}}+\.){{1,10}}(?!\d){label}{{2,63}}+|"
        rf"(?:\d{{1,3}}\.){{3}}\d{{1,3}})(?::\d{{1,5}})?[/?#][^\s<>\"']+"
    )


#: What texts lose that are to train a model, or to be searched for on the web, beside: the web,
#: machines, and long numbers.
_URLS = (
    re.compile(r"\b(?:[a-z][a-z0-9+.-]{1,20}://|www\.)[^\s<>\"']+", re.ASCII | re.IGNORECASE),
    _host(_LETTER),
    _host(r"\w"),
    # What has parameters, wherever it leads to.
    re.compile(r"(?<!\S)[^\s?&#]++[?&#][\w.-]+=\S*"),
)
_BROAD = (
    ("account", re.compile(_IBAN.pattern, re.ASCII)),
    ("account", _BROAD_IBAN),
    ("address", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])", re.ASCII)),
    (
        "address",
        re.compile(
            r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::|[0-9A-Fa-f]{1,4})+(?![\w:])", re.ASCII
        ),
    ),
    # Seven digits or more, perhaps apart.
    ("number", re.compile(r"(?<!\w)\+?\(?\d(?:[ ().\-/]{0,2}\d){6,}[Xx]?(?!\d)", re.ASCII)),
)


def find_personal(text: str, regions: Sequence[str] = ()) -> list[Finding]:
    """Find personal data whose form and checksum are right.

    `regions`: countries (ISO 3166, `US`) whose telephone numbers are found without their country's
    code too; China's mobile numbers always are.

    Raises:
        SettingsError: the extra `personal` is not installed.
    """
    return apart(_found(text, regions))


def mask_broadly(text: str) -> str:
    """Replace what may be personal by a word in angle brackets: any long number, too."""
    text = mask_urls(text)
    found = [each for pattern in _BROAD_EMAILS for each in _emails(text, pattern)]
    for category, pattern in _BROAD:
        found += [Finding(*each.span(), category) for each in pattern.finditer(text)]
    return masked(text, apart(found))


def mask_urls(text: str) -> str:
    """Replace addresses of the web and of the like by `<url>`, whole: what is found inside one
    would leave the rest of it.
    """
    for pattern in _URLS:
        text = pattern.sub("<url>", text)
    return text


def _found(text: str, regions: Sequence[str]) -> Iterator[Finding]:
    yield from _emails(text, _EMAIL)
    if not any(character.isdigit() for character in text):
        return
    judges = _judges()
    for each in _IBAN.finditer(text):
        if end := _valid_end(each[0], judges["iban"]):
            yield Finding(each.start(), each.start() + end, "iban")
    for category, pattern in (("id_number", _CN_ID), ("card", _CARD), ("ssn", _SSN)):
        for each in pattern.finditer(text):
            if judges[category](re.sub(r"[ -]", "", each[0])):
                yield Finding(*each.span(), category)
    yield from _phones(text, regions)


def _emails(text: str, pattern: re.Pattern[str]) -> list[Finding]:
    return [Finding(*each.span(), "email") for each in pattern.finditer(text) if each[1]]


def _valid_end(candidate: str, is_valid: Callable[[str], bool]) -> int:
    """Where the longest valid beginning ends that ends with a word; 0: there is none."""
    ends = [len(candidate), *(each.start() for each in re.finditer(" ", candidate))]
    valid = (end for end in sorted(ends, reverse=True) if is_valid(candidate[:end]))
    return next(valid, 0)


def _judges() -> dict[str, Callable[[str], bool]]:
    """By category: whether a number's checksum is right. https://arthurdejong.org/python-stdnum/"""
    try:
        from stdnum import iban, luhn
        from stdnum.iso7064 import mod_11_2
        from stdnum.us import ssn
    except ImportError as error:
        raise _missing() from error
    return {
        "iban": iban.is_valid, "id_number": mod_11_2.is_valid, "card": luhn.is_valid,
        "ssn": ssn.is_valid,
    }  # fmt: skip


def _phones(text: str, regions: Sequence[str]) -> Iterator[Finding]:
    """https://github.com/google/libphonenumber"""
    yield from (Finding(*each.span(), "phone") for each in _CN_MOBILE.finditer(text))
    try:
        from phonenumbers import PhoneNumberMatcher
    except ImportError as error:
        raise _missing() from error
    for region in regions or (None,):
        for each in PhoneNumberMatcher(text, region):
            yield Finding(each.start, each.end, "phone")


def _missing() -> SettingsError:
    return SettingsError(
        "Personal data cannot be found: pip install 'turnmill[personal]', or take 'personal' out "
        "of the bot's policy 'safety'."
    )
