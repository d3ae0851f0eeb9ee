"""A reply while its chunks come."""

from turnmill.schemas.content import TokenLogprob, ToolCall
from turnmill.schemas.turns import FinishReason, Reply, Usage
from turnmill.workers.engines.base import Chunk, ToolCallPiece


class ReplyDraft:
    """Joins chunks. Text continues that of earlier attempts; tool calls restart."""

    def __init__(self, kept_text: str, kept_tokens: int) -> None:
        self._texts = [kept_text]
        self._token_count = kept_tokens
        self._calls: dict[int, list[ToolCallPiece]] = {}
        self._logprobs: list[TokenLogprob] = []

    def add(self, chunk: Chunk) -> None:
        self._texts.append(chunk.text)
        self._token_count += chunk.token_count
        self._logprobs += chunk.logprobs
        for piece in chunk.tool_calls:
            self._calls.setdefault(piece.index, []).append(piece)

    def reply(self, last: Chunk, finish_reason: FinishReason, prompt_tokens: int) -> Reply:
        """The reply, whose last chunk has been added."""
        return Reply(
            content="".join(self._texts),
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=self._token_count,
                cached_tokens=last.cached_tokens,
            ),
            tool_calls=tuple(_joined(self._calls[index]) for index in sorted(self._calls)),
            logprobs=tuple(self._logprobs),
        )


def _joined(pieces: list[ToolCallPiece]) -> ToolCall:
    return ToolCall(
        id="".join(piece.id for piece in pieces),
        name="".join(piece.name for piece in pieces),
        arguments="".join(piece.arguments for piece in pieces),
    )
