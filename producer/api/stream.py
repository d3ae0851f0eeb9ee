"""The server-sent events of one streamed call.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import AsyncIterator, Iterator

import structlog

from turnmill.producer.api.errors import problem_of, problem_of_turn, stopping
from turnmill.producer.api.shapes import CompletionShape
from turnmill.producer.api.watch import Interrupt, Item, Watch
from turnmill.producer.follow import Restart
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.turns import Turn

#: A comment: proxies and clients see that the connection lives. One line, and no blank one after
#: it: a blank line ends an event, and clients that do not skip events without data (openai-go
#: before 3.43) fail at parsing it.
WAITING = ": waiting\n"
#: Silent seconds after which comments are sent: the first few, then each multiple of the last.
#: Seldom, because go-openai gives a stream up after 300 lines without data.
COMMENTS_AT_S = (1, 2, 4, 8, 15)
DONE = "data: [DONE]\n\n"

log = structlog.get_logger()


async def events(watch: Watch, item: Item, shape: CompletionShape) -> AsyncIterator[str]:
    """Say the reply as it comes; a failure after the first event is an event too."""
    yield _event(shape.opening())
    silent_s = 0
    try:
        while isinstance(item, str | Restart):
            # The watch says an empty text once a second while there is none.
            silent_s = 0 if item else silent_s + 1
            if item:
                yield _event(_said(item, shape))
            elif silent_s in COMMENTS_AT_S or silent_s % COMMENTS_AT_S[-1] == 0:
                yield WAITING
            item = await watch.next()
        for line in _closing(item, shape):
            yield line
    except Exception as error:
        # The message may repeat what was said; its kind is enough to look for it.
        log.error("stream.failed", error=type(error).__name__)
        yield _event(problem_of(error).json())
    yield DONE


def _said(item: str | Restart, shape: CompletionShape) -> str:
    return shape.restart() if isinstance(item, Restart) else shape.text(item)


def _closing(item: Turn | Interrupt, shape: CompletionShape) -> Iterator[str]:
    if isinstance(item, Interrupt):
        yield _event(stopping(shape.turn_id, may_repeat=shape.may_repeat).json())
    elif item.reply is None:
        yield _event(problem_of_turn(item).json())
    else:
        if item.reply.tool_calls:
            yield _event(shape.calls(item.reply))
        yield _event(shape.ending(item.reply))
        if shape.wants_usage:
            yield _event(shape.usage(item.reply))


def _event(data: str) -> str:
    return f"data: {one_line(data)}\n\n"
