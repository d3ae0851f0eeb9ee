"""Words as a search compares them."""

import pytest

from turnmill.schemas.store.knowledge.lexemes import as_tsvector, lexemes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Parcels, parcel's!", ["parcel", "parcel", "s"]),
        ("batteries classes gas bus glass", ["battery", "classe", "gas", "bus", "glass"]),
        ("电子发票", ["电子", "子发", "发票"]),
        ("票", ["票"]),
        ("iPhone手机壳 2024", ["iphone", "手机", "机壳", "2024"]),
        ("ＡＢＣ　１２３", ["abc", "123"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("snake_case a-b", ["snake", "case", "a", "b"]),
        ("こんにちは", ["こん", "んに", "にち", "ちは"]),
        ("", []),
        ("'; DROP \\ ''", ["drop"]),
    ],
)
def test_texts_become_lexemes(text: str, found: list[str]) -> None:
    assert lexemes(text) == found


def test_a_vector_counts_each_lexeme_at_its_places() -> None:
    assert as_tsvector(["a", "b", "a"]) == "'a':1,3 'b':2"
    many = as_tsvector(["a"] * 1000)
    assert many.count(",") == 254
    assert len(lexemes("x" * 500)[0]) == 64
