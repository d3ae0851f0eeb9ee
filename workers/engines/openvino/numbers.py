"""Ranges of numbers as expressions of the EBNF that OpenVINO GenAI reads."""

import math
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from turnmill.schemas.formats.plain import Schema

#: Digits of a number without bounds.
DIGITS = 15
#: Ways to write what is left of a whole number at a bound.
_STEP = Decimal("0.01")


def integers(low: float, high: float) -> Iterator[str]:
    """Whole numbers of a range; behind an open end, of 15 digits at most."""
    limit = 10**DIGITS - 1
    least = max(int(low), -limit) if math.isfinite(low) else -limit
    most = min(int(high), limit) if math.isfinite(high) else limit
    if least < 0:
        for option in _naturals(max(1, -most), -least):
            yield f'"-" {option}'
    if most >= 0:
        yield from _naturals(max(0, least), most)


def _naturals(least: int, most: int) -> Iterator[str]:
    """Numbers of a range from 0 on, by their leading digits.

    147 to 3999: `14` [7-9], `1` [5-9] any, [2-9] any any, [1-3] any any any.
    """
    while least <= most:
        # The largest block of numbers that begin alike, from the least one on.
        size = 1
        while least % (size * 10) == 0 and least + size * 10 - 1 <= most and least >= size * 10:
            size *= 10
        last = least // size % 10
        count = min(9 - last, (most - least + 1) // size - 1)
        head = str(least // size)[:-1]
        lead = f'"{head}" ' if head else ""
        digits = f"[{last}-{last + count}]" if count else f"[{last}]"
        free = f" [0-9]{{{len(str(size)) - 1}}}" if size > 1 else ""
        yield f"{lead}{digits}{free}"
        least += (count + 1) * size


def decimals(plain: Schema, low: float, high: float) -> Iterator[str]:
    """Numbers of a range: any fraction between two whole numbers within it, hundredths at its ends.

    `-3.1` lies between -4 and -3: below 0, fractions lead away from it.
    """
    least, most = _closed(plain, low, high)
    fraction = f'"." [0-9]{{1,{DIGITS}}}'
    first = least.to_integral_value(ROUND_CEILING) if least.is_finite() else least
    last = most.to_integral_value(ROUND_FLOOR) if most.is_finite() else most
    zero = Decimal(0)
    if last > max(first, zero):
        for option in integers(float(max(first, zero)), float(last - 1)):
            yield f"{option} ({fraction})?"
    if first < min(last, zero):
        for option in _naturals(max(1, _whole(-last)), _whole(-first - 1)):
            yield f'"-" {option} ({fraction})?'
        if last >= 0:
            yield f'"-0" {fraction}'
    for start, end in ((least, min(first, most)), (max(last, least), most)):
        if start.is_finite() and end.is_finite():
            yield from (f'"{number}"' for number in _hundredths(start, end))


def _closed(plain: Schema, low: float, high: float) -> tuple[Decimal, Decimal]:
    """The bounds as ones that belong to the range."""
    least, most = Decimal(str(low)), Decimal(str(high))
    middle = (least + most) / 2
    if plain.get("exclusiveMinimum") == low:
        least += _STEP
    if plain.get("exclusiveMaximum") == high:
        most -= _STEP
    return (least, most) if least <= most else (middle, middle)


def _hundredths(start: Decimal, end: Decimal) -> Iterator[str]:
    """What may be written between two numbers that are less than 1 apart, and these."""
    number = start
    while number < end:
        yield f"{number.normalize():f}"
        number = (number / _STEP + 1).to_integral_value(ROUND_FLOOR) * _STEP
    yield f"{end.normalize():f}"


def _whole(number: Decimal) -> int:
    return int(number) if number.is_finite() else 10**DIGITS - 1
