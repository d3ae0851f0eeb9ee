"""Policies: what is given, what completes it, and how the command line reads it."""

from typing import Any

import pytest
from pydantic import ValidationError

from turnmill.producer.cli.channels.policies import read_policies
from turnmill.schemas.channels.policies import CommandName, DoubleTexting, Policies
from turnmill.schemas.channels.unknown import Step
from turnmill.schemas.errors import InvalidInput


def test_policies_that_are_left_out_are_those_of_the_defaults() -> None:
    defaults = Policies.model_validate({"double_texting": "collect", "texts": {"reset": "Anew."}})
    given = Policies.model_validate({"quiet_s": 2, "texts": {"stopped": "Done."}})
    policies = given.over(defaults)
    assert policies.double_texting is DoubleTexting.COLLECT
    assert policies.quiet_s == 2
    assert (policies.texts.stopped, policies.texts.reset) == ("Done.", "Anew.")


@pytest.mark.parametrize(
    "given", [{"texts": {"reset": "a\0b"}}, {"stop_words": ["a\0b"]}, {"hand_off_words": ["a\0b"]}]
)
def test_what_postgres_cannot_store_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policies.model_validate(given)


def test_what_is_stored_is_what_was_given() -> None:
    assert Policies().stored == {}
    given = {"double_texting": "reject", "texts": {"stopped": "Done."}}
    assert Policies.model_validate(given).stored == given


def test_policies_of_a_later_release_are_read_without_what_this_one_does_not_know() -> None:
    stored = {"double_texting": "reject", "mood": "kind", "texts": {"stopped": "!", "waved": "?"}}
    assert Policies.of(stored).stored == {"double_texting": "reject", "texts": {"stopped": "!"}}
    assert Policies.of(None) == Policies()


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("stop", CommandName.STOP),
        ("  STOP! ", CommandName.STOP),
        ("\uff33\uff34\uff2f\uff30", CommandName.STOP),
        ("\u505c\u6b62\u3002", CommandName.STOP),
        ("/reset", CommandName.RESET),
        ("Talk to a Person.", CommandName.HAND_OFF),
        ("\u8f6c\u4eba\u5de5", CommandName.HAND_OFF),
        ("stop it", None),
        ("agent orange", None),
        ("stop stop", None),
        ("", None),
        ("stop" + " " * 1000, None),
    ],
)
def test_a_message_is_a_command_if_it_is_nothing_but_its_word(
    text: str, command: CommandName | None
) -> None:
    assert Policies().command_in(text) is command


def test_the_command_line_reads_policies() -> None:
    given = ["double_texting=interrupt", "quiet_s=0.5", "stop_words=stop,halt", "texts.stopped=a=b"]
    given += [
        "unknown.steps=search,uncertain",
        "safety.links=none",
        "safety.hosts=Shop.Example,*.shöp.example:443",
    ]
    policies = read_policies(given)
    assert policies.double_texting is DoubleTexting.INTERRUPT
    assert policies.quiet_s == 0.5
    assert policies.stop_words == ("stop", "halt")
    assert policies.texts.stopped == "a=b"
    assert policies.unknown.steps == (Step.SEARCH, Step.UNCERTAIN)
    assert policies.safety.links == "none"
    assert policies.safety.hosts == ("shop.example", "*.xn--shp-tna.example")
    assert Policies.of(policies.stored | {"safety": {"later": 1, "links": "none"}}).safety.links
    assert read_policies(None).stored == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("double_texting", "Write NAME=VALUE"),
        ("mood=kind", "known: double_texting"),
        ("double_texting=sometimes", "double_texting: Input should be 'enqueue'"),
        ("texts.waved=Hi", "texts.stopped"),
        ("safety.link=any", "safety.links"),
        ("safety.links=some", "safety.links: Input should be 'any'"),
        ("safety.hosts=https://shop.example/x", "a host without https://"),
        ("safety.checks=email:mask", "write CHECK:ACTION.* Checks: personal, secrets"),
        ("safety.checks=injection:block", "of injection allow and flag"),
        ("safety.regions=us", "two capital letters"),
        ("quiet_s=99", "quiet_s: Input should be less than"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_would_be_right(given: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as error:
        read_policies([given])
    assert "Value error" not in error.value.message
