"""The wire of the TensorFlow Serving engine, against a server that says what it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from turnmill.schemas.errors import (
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    SettingsError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote import control
from turnmill.workers.engines.text.local_tokenizer import LocalTokenizer
from turnmill.workers.engines.tfserving.engine import TFServingServer
from turnmill.workers.engines.tfserving.http import ModelClient
from turnmill.workers.turn.abort import Abort

WORDS = ["<end>", "<start>", "User:", "Assistant:", "hello", "one", "two", "three", "?"]
CONFIG = {
    "eos_token_id": 0,
    "decoder_start_token_id": 1,
    "max_position_embeddings": 64,
    "id2label": {"0": "calm", "1": "angry"},
}
PARAMS = GenerationParams(temperature=0, max_tokens=10).over(DEFAULT_PARAMS)
AVAILABLE = {"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": {}}]}
SEQ2SEQ = ["input_ids", "decoder_input_ids", "limit"]
GENERATE = ["input_ids", "length", "limit", "temperature", "top_p", "seed"]


def metadata(name: str, inputs: list[str], dtype: str) -> dict[str, Any]:
    described = {"inputs": {key: {} for key in inputs}, "outputs": {"out": {"dtype": dtype}}}
    return {"metadata": {"signature_def": {"signature_def": {name: described}}}}


@dataclass
class Script:
    """What the server answers, and what it was asked."""

    url: str = ""
    status: tuple[int, Any] = (200, AVAILABLE)
    metadata: tuple[int, Any] = (200, metadata("generate", GENERATE, "DT_INT32"))
    #: One a prediction, in turn.
    predictions: list[tuple[int, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    key: str | None = None
    #: What each answer has.
    headers: dict[str, str] = field(default_factory=dict)
    #: No prediction is answered before.
    may_answer: Event = field(default_factory=Event)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.paths.append(self.path)
            script.key = self.headers["Authorization"]
            self._send(*(script.metadata if "metadata" in self.path else script.status))

        def do_POST(self) -> None:
            script.paths.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.inputs.append(body["inputs"])
            script.may_answer.wait()
            self._send(*script.predictions.pop(0))

        def _send(self, status: int, answer: Any) -> None:
            if not status:  # dies in the middle of its answer
                self.send_response(200)
                self.send_header("Content-Length", "100")
                answer = b""
            else:
                self.send_response(status)
                answer = json.dumps(answer).encode()
            for header in script.headers.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=lambda: server.serve_forever(0.01))
        thread.start()
        yield script
        server.shutdown()
        thread.join()


@pytest.fixture
def script(scripted: Script) -> Script:
    scripted.__dict__.update(Script(url=scripted.url).__dict__)
    scripted.may_answer.set()
    return scripted


MakeTokenizer = Callable[..., LocalTokenizer]


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    """`make(template, **config)`; `<end>` ends a whole text."""

    def make(template: str | None = None, **config: Any) -> LocalTokenizer:
        vocabulary = {word: number for number, word in enumerate(WORDS)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))  # noqa: S106
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.add_special_tokens(["<end>", "<start>"])
        tokenizer.post_processor = TemplateProcessing("$A <end>", special_tokens=[("<end>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = CONFIG | config
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        return LocalTokenizer(tmp_path)

    return make


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> LocalTokenizer:
    return make_tokenizer()


def server(script: Script, tokenizer: LocalTokenizer, **settings: Any) -> TFServingServer:
    settings = {"remote_model": "m", "silence_s": 5} | settings
    chosen = EngineSettings.model_validate(settings)
    return TFServingServer(ModelClient(script.url, chosen), chosen, tokenizer)


def reply(one: TFServingServer, prefix: str = "", **params: Any) -> list[Chunk]:
    prompt = Prompt((Message(role=Role.USER, content="hello"),), prefix)
    return list(one.generate(prompt, PARAMS.model_copy(update=params), Abort()))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_each_block_is_asked_with_what_was_generated_before(
    script: Script, tokenizer: LocalTokenizer
) -> None:
    script.predictions = [(200, {"outputs": [[5, 6, -1]]}), (200, {"outputs": {"out": [[7, 0]]}})]
    chunks = reply(server(script, tokenizer))
    assert text_of(chunks) == "one two three"
    assert chunks[-1] == Chunk("", 1, "stop", prompt_tokens=3)
    first, second = script.inputs
    assert first["input_ids"] == [[2, 4, 3]]
    assert (first["length"], first["limit"], first["temperature"]) == ([3], [8], [0])
    assert second["input_ids"] == [[2, 4, 3, 5, 6]]
    assert second["seed"] != first["seed"]


def test_the_last_block_asks_for_what_is_left(script: Script, tokenizer: LocalTokenizer) -> None:
    script.predictions = [(200, {"outputs": [[5] * 8]}), (200, {"outputs": [[6, 6, 6]]})]
    chunks = reply(server(script, tokenizer))
    assert [each["limit"] for each in script.inputs] == [[8], [2]]
    assert sum(chunk.token_count for chunk in chunks) == 10
    assert chunks[-1].finish_reason == "length"


def test_a_seed_draws_the_same_numbers_again(script: Script, tokenizer: LocalTokenizer) -> None:
    script.predictions = [(200, {"outputs": [[0]]})] * 3
    for seed in (7, 7, 8):
        reply(server(script, tokenizer), seed=seed)
    seven, again, eight = (each["seed"] for each in script.inputs)
    assert seven == again != eight


def test_an_encoder_gets_the_prompt_and_its_decoder_the_reply(
    script: Script, make_tokenizer: MakeTokenizer
) -> None:
    inputs = ["input_ids", "decoder_input_ids", "decoder_length", "limit"]
    script.metadata = (200, metadata("serving_default", inputs, "DT_INT64"))
    script.predictions = [(200, {"outputs": [[6]]}), (200, {"outputs": [[0]]})]
    tokenizer = make_tokenizer(is_encoder_decoder=True)
    reply(server(script, tokenizer), prefix="one")
    # Without a template, the text is what a tokenizer makes of a whole one.
    assert [each["input_ids"] for each in script.inputs] == [[[4, 0]]] * 2
    assert [each["decoder_input_ids"] for each in script.inputs] == [[[1, 5]], [[1, 5, 6]]]
    assert [each["decoder_length"] for each in script.inputs] == [[2], [3]]


def test_the_template_of_an_encoder_decoder_model_writes_all_there_is(
    script: Script, make_tokenizer: MakeTokenizer
) -> None:
    script.metadata = (200, metadata("generate", SEQ2SEQ, "DT_INT32"))
    script.predictions = [(200, {"outputs": [[0]]})]
    template = "{% for each in messages %}User: {{ each.content }} {% endfor %}Assistant:"
    reply(server(script, make_tokenizer(template, is_encoder_decoder=True)))
    assert [each["input_ids"] for each in script.inputs] == [[[2, 4, 3]]]


def test_what_an_encoder_decoder_model_said_cannot_end_its_reply(
    script: Script, make_tokenizer: MakeTokenizer
) -> None:
    script.metadata = (200, metadata("generate", SEQ2SEQ, "DT_INT32"))
    script.predictions = [(200, {"outputs": [[0]]})]
    reply(server(script, make_tokenizer(is_encoder_decoder=True)), prefix="<end>")
    assert script.inputs[0]["decoder_input_ids"] == [[1, WORDS.index("?")]]


def test_a_classifier_replies_with_its_label(script: Script, tokenizer: LocalTokenizer) -> None:
    script.metadata = (200, metadata("classify", ["input_ids"], "DT_FLOAT"))
    script.predictions = [(200, {"outputs": [[0.1, 0.9]]})]
    assert reply(server(script, tokenizer)) == [Chunk("angry", 0, "stop", prompt_tokens=2)]
    assert script.inputs == [{"input_ids": [[4, 0]]}]


@pytest.mark.parametrize(
    ("version", "path"), [(None, "m"), ("3", "m/versions/3"), ("stable", "m/labels/stable")]
)
def test_a_number_is_a_version_and_a_word_a_label(
    script: Script, tokenizer: LocalTokenizer, version: str | None, path: str
) -> None:
    script.predictions = [(200, {"outputs": [[0]]})]
    one = server(script, tokenizer, remote_version=version, endpoint_key="s3cret")
    one.check()
    reply(one)
    # The status of a label is not that label's.
    looked = [] if version == "stable" else [f"/v1/models/{path}"]
    wanted = [*looked, f"/v1/models/{path}/metadata", f"/v1/models/{path}:predict"]
    assert script.paths == wanted
    assert script.key == "Bearer s3cret"


@pytest.mark.parametrize("status", [0, 404, 429, 500, 503, 504])
def test_what_speaks_of_the_server_sends_the_turn_elsewhere(
    script: Script, tokenizer: LocalTokenizer, status: int
) -> None:
    script.predictions = [(status, {"error": "no"})]
    with pytest.raises(EngineUnavailable):
        reply(server(script, tokenizer))


@pytest.mark.parametrize("status", [429, 503])
def test_a_gateway_that_has_too_much_to_do_says_for_how_long(
    script: Script, tokenizer: LocalTokenizer, status: int
) -> None:
    script.predictions, script.headers = [(status, {"error": "no"})], {"Retry-After": "7"}
    with pytest.raises(EngineBusy) as caught:
        reply(server(script, tokenizer))
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("answer", [[], {}, {"outputs": 3}, {"outputs": []}, {"outputs": {}}])
def test_nonsense_sends_the_turn_elsewhere(
    script: Script, tokenizer: LocalTokenizer, answer: Any
) -> None:
    script.predictions = [(200, answer)]
    with pytest.raises(EngineUnavailable):
        reply(server(script, tokenizer))


def test_a_refusal_is_the_turns_own_if_the_model_is_in_order(
    script: Script, tokenizer: LocalTokenizer
) -> None:
    script.predictions = [(400, {"error": "too long"})] * 2
    one = server(script, tokenizer)
    with pytest.raises(EngineFailure, match="too long"):
        reply(one)
    script.metadata = (400, {"error": "Unrecognized servable version label"})
    with pytest.raises(EngineUnavailable, match="label"):
        reply(one)


def test_a_model_that_is_not_available_says_in_which_state_it_is(
    script: Script, tokenizer: LocalTokenizer
) -> None:
    status = {"error_code": "RESOURCE_EXHAUSTED", "error_message": "no memory"}
    state = {"version": "3", "state": "END", "status": status}
    script.status = (200, {"model_version_status": [state]})
    with pytest.raises(EngineUnavailable, match="3 is END: no memory"):
        server(script, tokenizer).check()


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (metadata("train", ["input_ids"], "DT_INT32"), "none of the signatures"),
        (metadata("generate", ["image"], "DT_INT32"), "takes image"),
        (metadata("generate", ["input_ids"], "DT_INT32"), "takes no 'limit'"),
        (metadata("generate", ["input_ids"], "DT_STRING"), "neither token ids nor scores"),
        ({"metadata": {}}, "lacks 'signature_def'"),
    ],
)
def test_a_model_that_cannot_be_asked_says_why(
    script: Script, tokenizer: LocalTokenizer, found: Any, complaint: str
) -> None:
    script.metadata = (200, found)
    with pytest.raises(EngineUnavailable, match=complaint):
        server(script, tokenizer).check()


def test_a_closed_server_and_one_that_is_not_there_say_so(
    script: Script, tokenizer: LocalTokenizer
) -> None:
    one = server(script, tokenizer)
    one.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        reply(one)
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        server(Script(url="http://127.0.0.1:9"), tokenizer).check()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        LocalTokenizer(tmp_path)


@pytest.mark.parametrize("wish", [{"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_sampling_that_the_model_does_not_know_is_refused_by_name(
    script: Script, tokenizer: LocalTokenizer, wish: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="TensorFlow Serving") as caught:
        reply(server(script, tokenizer), **wish)
    assert caught.value.param in wish
    assert script.inputs == []


def test_a_control_question_has_a_timeout_of_its_own_and_hears_an_abort(
    script: Script, tokenizer: LocalTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction, which nothing can end, may take far longer."""
    script.may_answer.clear()
    script.predictions = [(200, {"outputs": [[5]]})] * 2
    one = server(script, tokenizer, silence_s=600)
    try:
        monkeypatch.setattr(control, "CONTROL_S", 0.05)
        assert control.answers(one, Abort()) is None
        monkeypatch.setattr(control, "CONTROL_S", 30)
        abort = Abort()
        Timer(0.05, abort.set).start()
        began_at = time.monotonic()
        assert control.answers(one, abort) is None
        assert time.monotonic() - began_at < 30
    finally:
        script.may_answer.set()
        for thread in threading.enumerate():
            if thread.name == "control-question":
                thread.join()
