"""The states of a turn and the shapes of what is asked: what every other part relies on."""

import json
from uuid import UUID

import pytest
from pydantic import ValidationError

from turnmill.producer.accept import fingerprint
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import (
    DEFAULT_PARAMS,
    OPEN_STATES,
    TRANSITIONS,
    GenerationParams,
    Message,
    Role,
    TurnRequest,
    TurnState,
)

ENDS = {
    TurnState.COMPLETED,
    TurnState.CANCELLED,
    TurnState.HANDED_OFF,
}


def test_every_state_has_its_line_in_the_table() -> None:
    assert set(TRANSITIONS) == set(TurnState)
    assert all(targets <= set(TurnState) for targets in TRANSITIONS.values())


@pytest.mark.parametrize("start", [TurnState.WAITING, TurnState.QUEUED])
def test_every_other_state_is_reached_from_where_a_turn_starts(start: TurnState) -> None:
    reached, frontier = {start}, [start]
    while frontier:
        for target in TRANSITIONS[frontier.pop()] - reached:
            reached.add(target)
            frontier.append(target)
    assert reached == set(TurnState)


def test_what_has_ended_stays_ended() -> None:
    assert {state for state, targets in TRANSITIONS.items() if not targets} == ENDS


def test_turns_that_failed_or_are_parked_are_not_open_but_may_be_replayed() -> None:
    assert set(TurnState) - ENDS - {TurnState.PARKED, TurnState.FAILED} == OPEN_STATES
    assert TRANSITIONS[TurnState.FAILED] == {TurnState.WAITING}
    assert TRANSITIONS[TurnState.PARKED] == {TurnState.WAITING, TurnState.FAILED}


def test_any_open_turn_can_be_cancelled_and_only_a_running_one_completes() -> None:
    assert {state for state, to in TRANSITIONS.items() if TurnState.CANCELLED in to} == OPEN_STATES
    assert [state for state, to in TRANSITIONS.items() if TurnState.COMPLETED in to] == [
        TurnState.RUNNING
    ]


def test_only_a_replay_makes_turns_wait_again() -> None:
    assert {state for state, to in TRANSITIONS.items() if TurnState.WAITING in to} == {
        TurnState.QUEUED,
        TurnState.PARKED,
        TurnState.FAILED,
    }


@pytest.mark.parametrize("text", ["\0", "before\0after", "\ud800"])
def test_text_that_postgres_cannot_keep_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Message(role=Role.USER, content=text)
    with pytest.raises(ValidationError):
        GenerationParams(stop=(text,))


def test_a_nul_is_refused_in_escaped_json_too() -> None:
    with pytest.raises(ValidationError, match="NUL"):
        Message.model_validate_json(r'{"role": "user", "content": "a\u0000b"}')


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 0},
        {"top_p": float("nan")},
        {"max_tokens": 0},
        {"seed": 2**63},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ("a", "b", "c", "d", "e")},
        {"top_k": -2},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"temprature": 1},
        {"template_kwargs": {"messages": "x"}},
    ],
)
def test_parameters_out_of_bounds_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerationParams.model_validate(wrong)


def test_what_a_turn_leaves_out_comes_from_the_bot_and_then_from_the_defaults() -> None:
    bot = GenerationParams(temperature=0.2, stop=("END",)).over(DEFAULT_PARAMS)
    params = GenerationParams(max_tokens=7, temperature=0.0).over(bot)
    assert params == GenerationParams(temperature=0.0, top_p=1.0, max_tokens=7, stop=("END",))


def test_sampling_parameters_that_change_nothing_are_not_among_those_that_do() -> None:
    neutral = GenerationParams(temperature=1, top_p=1, top_k=-1, min_p=0.0, repetition_penalty=1.0)
    assert neutral.sampling == DEFAULT_PARAMS.sampling == {}
    assert GenerationParams(temperature=0, top_k=40).sampling == {"temperature": 0, "top_k": 40}


def test_a_turn_can_turn_off_what_its_bot_turns_on() -> None:
    bot = GenerationParams(top_k=40, min_p=0.1, repetition_penalty=1.2).over(DEFAULT_PARAMS)
    assert bot.sampling == {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2}
    assert GenerationParams(top_k=-1, min_p=0, repetition_penalty=1).over(bot).sampling == {}


def test_parameters_survive_the_way_through_json() -> None:
    params = GenerationParams(temperature=0.3, top_k=5, min_p=0.1, stop=("a", "b"), seed=2**63 - 1)
    stored = json.loads(json.dumps(params.model_dump(mode="json")))
    assert GenerationParams.model_validate(stored) == params


def test_a_turn_has_at_least_one_message_and_a_key_that_is_not_empty() -> None:
    message = Message(role=Role.USER, content="hello")
    with pytest.raises(ValidationError):
        TurnRequest(tenant_id=new_id(), bot="b", messages=())
    for key in ("", "k" * 256):
        with pytest.raises(ValidationError):
            TurnRequest(tenant_id=new_id(), bot="b", messages=(message,), idempotency_key=key)
    for timeout_s in (0, -1, float("nan")):
        with pytest.raises(ValidationError):
            TurnRequest(tenant_id=new_id(), bot="b", messages=(message,), timeout_s=timeout_s)


def test_a_key_means_the_same_turn_in_the_releases_before() -> None:
    request = TurnRequest(
        tenant_id=UUID(int=1),
        bot="support",
        messages=(Message(role=Role.USER, content="Where is it?"),),
        params=GenerationParams(temperature=0.5, seed=7),
        conversation_id=UUID(int=2),
        timeout_s=9,
    )
    stored = "fbead96c50ffb78504aeeff1d49be2fdc49f9c1ec4a8e860ec8e182a04b67e68"
    assert fingerprint(request).hex() == stored
    for more in ({"top_k": 5}, {"template_kwargs": {"enable_thinking": False}}):
        params = request.params.model_copy(update=more)
        assert fingerprint(request.model_copy(update={"params": params})).hex() != stored
