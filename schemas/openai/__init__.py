"""The bodies of OpenAI's chat completions API, as far as Turnmill speaks it.

Nothing that would change the reply is ignored in silence: a field Turnmill cannot honour is
refused by name, one that has no bearing on the reply is accepted, and one that nobody knows
is an error. Everything is bounded here, before it meets a queue or a database, the work of
finding out what is wrong with a body included.

https://platform.openai.com/docs/api-reference/chat
"""

from turnmill.schemas.openai.listings import ErrorBody, ErrorDetail, Model, ModelList
from turnmill.schemas.openai.parsing import parse_chat_request
from turnmill.schemas.openai.replies import (
    Annotation,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    Delta,
    ReplyExtension,
    ReplyMessage,
    ReplyToolCall,
    StreamExtension,
)
from turnmill.schemas.openai.requests import ChatCompletionRequest

__all__ = [
    "Annotation",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "Choice",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionUsage",
    "Delta",
    "ErrorBody",
    "ErrorDetail",
    "Model",
    "ModelList",
    "ReplyExtension",
    "ReplyMessage",
    "ReplyToolCall",
    "StreamExtension",
    "parse_chat_request",
]
