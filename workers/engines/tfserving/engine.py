"""The engine that asks TensorFlow Serving: token ids go out, token ids or scores come back.

TensorFlow Serving cannot stream. A reply therefore comes in blocks: each call gets the prompt and
what was generated so far, and answers with the next few tokens. The server keeps nothing between
two calls, so an abort costs a block at most, and so does a replica that dies.

A classifier's reply is the label with the highest score, for the last user message. A model with
a decoder of its own gets the prompt and its reply apart.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineFailure,
    InvalidInput,
    SettingsError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import FinishReason, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt, refuse_template_kwargs
from turnmill.workers.engines.local.batching import to_chunks
from turnmill.workers.engines.local.scheduling import Token
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.remote.engine import RemoteEngine
from turnmill.workers.engines.text.local_tokenizer import LocalTokenizer
from turnmill.workers.engines.text.stops import Detokenizer, StopFilter
from turnmill.workers.engines.tfserving.http import ModelClient, Signature
from turnmill.workers.turn.abort import Abort

#: Sampling parameters that a signature may take.
SAMPLING = frozenset({"temperature", "top_p"})

#: Tokens asked for at once, at most: what an abort or a replica's death may waste.
BLOCK = 8


class TFServingEngine(RemoteEngine):
    """A model in TensorFlow Serving; its tokenizer and chat template are in a folder here."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, self._connect_with_tokenizer)
        self._tokenizer: LocalTokenizer | None = None

    def start(self) -> None:
        self._tokenizer = LocalTokenizer(Path(prepare_model(self._settings, "safetensors")))
        super().start()

    def _connect_with_tokenizer(self, endpoint: str, settings: EngineSettings) -> "TFServingServer":
        assert self._tokenizer is not None
        return TFServingServer(ModelClient(endpoint, settings), settings, self._tokenizer)


class TFServingServer:
    """One replica."""

    def __init__(
        self, client: ModelClient, settings: EngineSettings, tokenizer: LocalTokenizer
    ) -> None:
        self._client = client
        self._settings = settings
        self._tokenizer = tokenizer
        #: As of the last look: another version may want to be asked in another way.
        self._signature: Signature | None = None

    @property
    def name(self) -> str:
        return self._client.endpoint

    def check(self) -> None:
        self._signature = self._client.look()

    def context_window(self) -> int:
        found = self._tokenizer.context_length
        limits = [limit for limit in (self._settings.context_window, found) if limit]
        if not limits:
            raise SettingsError(
                "The model's config.json does not say how many tokens it takes. Set "
                "TURNMILL_ENGINE__CONTEXT_WINDOW."
            )
        return min(limits)

    def count_tokens(self, prompt: Prompt) -> int:
        return self._encode(self._known_signature(), prompt).token_count

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        signature = self._known_signature()
        asked = self._encode(signature, prompt)
        room = self.context_window() - asked.token_count
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {asked.token_count} tokens; with room for a reply, "
                f"{self.context_window() - 1} fit.",
                param="messages",
            )
        if signature.kind == "scores":
            chunks = self._classify(signature, asked, prompt.prefix)
        else:
            _refuse_unknown_sampling(params)
            limit = min(params.max_tokens or room, room)
            tokens = self._tokens(signature, asked, limit, params, abort)
            context = (asked.decoder_ids or asked.ids)[-1:] if prompt.prefix else ()
            detokenizer = Detokenizer(self._tokenizer.decode, context)
            chunks = to_chunks(tokens, detokenizer, StopFilter(params.stop, prompt.prefix))
        for chunk in chunks:
            if abort.is_set():
                return
            is_last = chunk.finish_reason is not None
            yield replace(chunk, prompt_tokens=asked.token_count) if is_last else chunk

    def close(self) -> None:
        self._client.close()

    def _known_signature(self) -> Signature:
        self._signature = self._signature or self._client.look()
        return self._signature

    def _encode(self, signature: Signature, prompt: Prompt) -> "_Asked":
        has_decoder = "decoder_input_ids" in signature.inputs
        template = self._tokenizer.template
        if signature.kind == "scores":
            refuse_template_kwargs(prompt.template_kwargs)
            text, is_whole = template.defuse(_last_user_text(prompt.messages)), True
        elif has_decoder:
            # A template of the model's own writes the tokens around a text, too.
            text = template.render(prompt.messages, kwargs=prompt.template_kwargs)
            is_whole = not self._tokenizer.has_template
        else:
            text = template.render(prompt.messages, prompt.prefix, prompt.template_kwargs)
            is_whole = False
        try:
            ids = self._tokenizer.encode(text, is_whole=is_whole)
            begun = self._tokenizer.encode(template.defuse(prompt.prefix)) if has_decoder else []
        except Exception as error:
            raise EngineFailure(f"The prompt cannot be tokenized: {error}") from error
        if not ids:
            raise EngineFailure("The prompt has no tokens.")
        decoder_ids = [self._tokenizer.start_id, *begun] if has_decoder else []
        return _Asked(ids, decoder_ids)

    def _tokens(
        self,
        signature: Signature,
        asked: "_Asked",
        limit: int,
        params: GenerationParams,
        abort: Abort,
    ) -> Iterator[Token]:
        reply: list[int] = []
        seed = os.urandom(8) if params.seed is None else params.seed.to_bytes(8, "little")
        while not abort.is_set():
            inputs = asked.inputs(reply) | {
                "limit": [min(BLOCK, limit - len(reply))],
                "temperature": [params.temperature],
                "top_p": [params.top_p],
                "seed": [_block_seed(seed, len(reply))],
            }
            for token in self._block(signature, inputs):
                reply.append(token)
                reason: FinishReason | None = "length" if len(reply) == limit else None
                if token in self._tokenizer.end_ids:
                    reason = "stop"
                yield Token(token, reason)
                if reason or abort.is_set():
                    return

    def _block(self, signature: Signature, inputs: dict[str, list[object]]) -> list[int]:
        """At least one token: a block of none would be asked for again for ever."""
        ids = [int(token) for token in self._predict(signature, inputs) if token >= 0]
        if not ids:
            raise EngineFailure(f"{self.name} generates no token for this prompt.")
        return ids

    def _classify(self, signature: Signature, asked: "_Asked", prefix: str) -> Iterator[Chunk]:
        scores = self._predict(signature, asked.inputs([]))
        label = self._tokenizer.label(scores.index(max(scores)))
        # Nothing is generated, so the reply costs no tokens.
        yield Chunk(label.removeprefix(prefix), 0, "stop")

    def _predict(self, signature: Signature, inputs: dict[str, list[object]]) -> list[float]:
        wanted = {name: value for name, value in inputs.items() if name in signature.inputs}
        return self._client.predict(signature, wanted)


def _refuse_unknown_sampling(params: GenerationParams) -> None:
    for name in params.sampling.keys() - SAMPLING:
        raise InvalidInput(
            f"'{name}' is not supported by this model in TensorFlow Serving. Leave it out.",
            param=name,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt as token ids."""

    ids: list[int]
    #: Where the reply is a decoder's: what that begins with. Otherwise the reply follows `ids`.
    decoder_ids: list[int]

    @property
    def token_count(self) -> int:
        return len(self.ids) + len(self.decoder_ids)

    def inputs(self, reply: list[int]) -> dict[str, list[object]]:
        """For one turn, after what was generated of its reply."""
        ids = self.ids if self.decoder_ids else self.ids + reply
        return {
            "input_ids": [ids],
            "length": [len(ids)],
            "attention_mask": [[1] * len(ids)],
            "token_type_ids": [[0] * len(ids)],
            "decoder_input_ids": [self.decoder_ids + reply],
            "decoder_length": [len(self.decoder_ids) + len(reply)],
        }


def _block_seed(seed: bytes, position: int) -> list[int]:
    """Two int32: no two blocks of a reply draw the same random numbers."""
    digest = hashlib.blake2b(position.to_bytes(8, "little"), key=seed, digest_size=8).digest()
    return [int.from_bytes(digest[at : at + 4], "little", signed=True) for at in (0, 4)]


def _last_user_text(messages: Sequence[Message]) -> str:
    return next((m.text for m in reversed(messages) if m.role is Role.USER), "")
