"""The control question: does a server that failed at one turn answer another one?

A status alone does not tell. 429 may mean every turn, or a single one that is larger than the
server's limit; 403 a key that is not valid any more, or a prompt that a filter refuses. Lists of
models are answered in all of these cases, so the server is asked for a few tokens.
"""

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from turnmill.schemas.errors import EngineAway, EngineUnavailable, TurnmillError, Unanswered
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


def can_be_the_turns(error: EngineUnavailable) -> bool:
    """Not that of a server that cannot be reached, or that has been silent for long already."""
    return not isinstance(error, EngineAway | Unanswered)


def answers(replica: Answering, abort: Abort) -> bool | None:
    """Return whether the replica begins to answer the control question.

    None: it said nothing within `CONTROL_S`, or until `abort` was set.
    """
    if abort.is_set():
        return None
    said: SimpleQueue[bool | None] = SimpleQueue()
    control = Abort()

    def read() -> None:
        try:
            for _ in replica.generate(CONTROL, CONTROL_PARAMS, control):
                said.put(True)
                control.set()
        except Unanswered:
            said.put(None)
        except TurnmillError:
            pass  # aborted after its first token, it may fail as well
        finally:
            said.put(False)

    # On a thread that can be left: some engines ignore an abort while their server is silent.
    Thread(target=read, name="control-question", daemon=True).start()
    try:
        with abort.telling(lambda: said.put(None)):
            return said.get(timeout=CONTROL_S)
    except Empty:
        return None
    finally:
        control.set()
