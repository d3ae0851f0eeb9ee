"""How much of made-up personal data is found, English and Chinese: `pytest -s` prints the table.

python -m pytest -n 0 -s tests/unit/schemas/safety/test_personal_score.py
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from turnmill.schemas.safety.personal import find_personal

faker = pytest.importorskip("faker", reason="pip install 'turnmill[dev]'")
pytest.importorskip("phonenumbers", reason="pip install 'turnmill[personal]'")

EXAMPLES = 400

#: A place for each value, and numbers that are nobody's.
ENGLISH = (
    "Order {order} of {date} is late, please write to {email} or call {phone} before 10:30.",
    "My card {card} was charged {price} twice; refund it to {iban}, reference {order}.",
    "For the form: {ssn}, {name}, {address}. Version 1.2.3, parcel {parcel}.",
)
CHINESE = (
    "订单{order}（{date}）还没到，请联系{email}或{phone}，谢谢。",
    "我的银行卡{card}被扣了{price}元两次，订单号{order}。",
    "身份证号{id_number}，姓名{name}，地址{address}，快递单号{parcel}，电话：{phone}",
)


class Score(NamedTuple):
    precision: float
    recall: float
    f1: float


def values(fake: Any) -> dict[str, tuple[str | None, Callable[[], Any]]]:
    """By the place in a sentence: the category, where there is one, and what makes a value."""
    return {
        "email": ("email", fake.email),
        "phone": ("phone", fake.phone_number),
        "card": ("card", fake.credit_card_number),
        "iban": ("iban", fake.iban),
        "ssn": ("ssn", fake.ssn),
        "id_number": ("id_number", fake.ssn),
        "order": (None, lambda: fake.numerify("########")),
        "parcel": (None, lambda: fake.bothify("??##########").upper()),
        "date": (None, fake.date),
        "price": (None, lambda: fake.numerify("###.##")),
        "name": (None, fake.name),
        "address": (None, lambda: " ".join(fake.address().split())),
    }


def score(locale: str, sentences: tuple[str, ...], regions: tuple[str, ...]) -> dict[str, Score]:
    """By category: what is found of it, with its exact place."""
    fake = faker.Faker(locale)
    fake.seed_instance(7)
    right, found, there = Counter[str](), Counter[str](), Counter[str]()
    for number in range(EXAMPLES):
        text, wanted = filled(sentences[number % len(sentences)], values(fake))
        got = {
            (each.category, text[each.start : each.end]) for each in find_personal(text, regions)
        }
        right.update(category for category, _ in wanted & got)
        found.update(category for category, _ in got)
        there.update(category for category, _ in wanted)
    return {each: scored(right[each], found[each], there[each]) for each in sorted(there | found)}


def filled(sentence: str, values: dict[str, Any]) -> tuple[str, set[tuple[str, str]]]:
    made = {place: str(make()) for place, (_, make) in values.items() if f"{{{place}}}" in sentence}
    wanted = {(values[place][0], value) for place, value in made.items() if values[place][0]}
    return sentence.format(**made), wanted


def scored(right: int, found: int, there: int) -> Score:
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return Score(precision, recall, 2 * right / (found + there) if found + there else 0.0)


@pytest.mark.parametrize(
    ("locale", "sentences", "regions", "floors"),
    [
        (
            "en_US", ENGLISH, ("US",),
            {"email": 0.99, "card": 0.9, "iban": 0.95, "ssn": 0.95, "phone": 0.6},
        ),
        ("zh_CN", CHINESE, (), {"email": 0.99, "card": 0.9, "id_number": 0.95, "phone": 0.95}),
    ],
    ids=["English", "Chinese"],
)  # fmt: skip
def test_most_of_made_up_personal_data_is_found(
    locale: str, sentences: tuple[str, ...], regions: tuple[str, ...], floors: dict[str, float]
) -> None:
    scores = score(locale, sentences, regions)
    print(f"\n| {locale} | precision | recall | F1 |\n|---|---|---|---|")  # noqa: T201
    for category, each in scores.items():
        print(f"| `{category}` | {each.precision:.2f} | {each.recall:.2f} | {each.f1:.2f} |")  # noqa: T201
    assert {category: each.f1 for category, each in scores.items() if category in floors} | {
        category: floor for category, floor in floors.items() if scores[category].f1 >= floor
    } == floors
