"""Log-probabilities are told by the texts of tokens, as they stand in the reply."""

from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.local.scheduling import Generation, Token
from turnmill.workers.engines.local.telling import Telling

PIECES = {1: " a", 2: " b", 3: " c", 9: "<end>"}


def decode(ids: list[int]) -> str:
    """As some tokenizers do: without the space of the first token."""
    return "".join(PIECES[id] for id in ids).removeprefix(" ")


def test_tokens_and_the_likeliest_in_their_place_are_told_once() -> None:
    tokens = [
        Token(1, logprobs=((1, -0.5), (1, -0.5), (2, -1.0), (3, -3.0))),
        Token(3, logprobs=((3, -4.0), (1, -0.1), (2, -0.2), (3, -4.0))),
        Token(9, "stop", logprobs=((9, -0.1), (9, -0.1), (2, -5.0))),
    ]
    telling = Telling(tokens, decode, Generation([2], 10, GenerationParams(logprobs=2)))
    assert [token.id for token in telling] == [1, 3, 9]
    first, second = telling.told()
    assert (first.text, first.logprob, first.top) == (" a", -0.5, ((" a", -0.5), (" b", -1.0)))
    assert (second.text, second.logprob, second.top) == (" c", -4.0, ((" a", -0.1), (" b", -0.2)))
    assert telling.told() == ()


def test_nothing_is_told_of_what_no_turn_asks_for() -> None:
    telling = Telling([Token(1), Token(9, "stop")], decode, Generation([2], 10, GenerationParams()))
    assert len(list(telling)) == 2
    assert telling.told() == ()
