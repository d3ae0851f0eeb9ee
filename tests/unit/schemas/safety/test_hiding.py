"""A policy hides what another does, or less."""

from typing import Any

import pytest

from turnmill.schemas.safety.policy import Safety

MASKS = ["words:mask"]


@pytest.mark.parametrize(
    ("own", "other", "hides"),
    [
        ({}, {}, True),
        ({}, {"checks": ["personal:flag", "secrets.output:mask"]}, True),
        ({}, {"checks": ["personal:mask"]}, False),
        ({"checks": ["personal.input:block"]}, {"checks": ["personal:mask"]}, True),
        (
            {"checks": ["personal:mask", "personal.input:allow"]},
            {"checks": ["personal:mask"]},
            False,
        ),
        ({"remote": "pseudonyms"}, {"checks": ["personal:mask"]}, False),
        ({"checks": ["personal:mask"]}, {"remote": "pseudonyms"}, False),
        ({"remote": "pseudonyms"}, {"remote": "pseudonyms", "regions": ["DE"]}, False),
        ({"regions": ["DE", "FR"]}, {"regions": ["DE"]}, True),
        ({"checks": MASKS, "words": ["a"]}, {"checks": MASKS, "words": ["b"]}, False),
        ({"checks": MASKS, "words": ["a", "b"]}, {"checks": MASKS, "words": ["b"]}, True),
        ({"checks": ["personal:mask"], "fail": "open"}, {"checks": ["personal:mask"]}, False),
        ({"fail": "open"}, {}, True),
    ],
)
def test_a_policy_hides_all_that_another_does(
    own: dict[str, Any], other: dict[str, Any], hides: bool
) -> None:
    assert Safety.model_validate(own).hides(Safety.model_validate(other)) is hides
