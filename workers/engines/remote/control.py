"""The control question: does a server that failed at one turn answer another one?

A status alone does not tell. 429 may mean every turn, or a single one that is larger than the
server's limit; 403 a key that is not valid any more, or a prompt that a filter refuses. Lists of
models are answered in all of these cases, so the server is asked for a few tokens.
"""

from collections.abc import Iterator
from threading import Timer
from typing import Protocol

from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.turn.abort import Abort

#: Seconds in which the first token must come.
CONTROL_S = 5.0
#: A model that thinks first needs more than one token; reading stops at the first.
CONTROL_PARAMS = GenerationParams(max_tokens=16).over(DEFAULT_PARAMS)
#: Says nothing of any user.
CONTROL = Prompt((Message(role=Role.USER, content="Hello"),))


class Answering(Protocol):
    """What is asked: a replica."""

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        """As `Engine.generate`."""
        ...


def answers(replica: Answering) -> bool:
    """Return whether the replica begins to answer the control question within `CONTROL_S`."""
    is_answered, abort = False, Abort()
    timer = Timer(CONTROL_S, abort.set)
    timer.start()
    try:
        for _ in replica.generate(CONTROL, CONTROL_PARAMS, abort):
            is_answered = True
            abort.set()
    except TurnmillError:
        pass  # aborted after its first token, it may fail as well
    finally:
        timer.cancel()
    return is_answered
