"""Transcribers and readers of images: the packaged models, and a server of OpenAI's protocol."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.integration.media.conftest import BOT, MakeSite
from tests.integration.media.making import (
    as_amr,
    audio_part,
    image_part,
    photographed,
    saved,
    spoken,
    tone,
)
from turnmill.schemas.errors import EngineUnavailable, InvalidInput, SettingsError
from turnmill.schemas.files.sniffing import sniff
from turnmill.schemas.settings import MediaSettings
from turnmill.workers.media import sound
from turnmill.workers.media.base import Hints, TranscriberFailed, TranscriberRefuses
from turnmill.workers.media.registry import (
    create_image_reader,
    create_synthesizer,
    create_transcriber,
)
from turnmill.workers.media.transcribers.openai_http import ServerTranscriber
from turnmill.workers.media.transcribers.whisper import languages_of
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.abort import Interrupted

EN = Hints("en")
TICKET = "Hello. My order number four seven one one has not arrived. Where is my parcel?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.needs("media")
def test_a_spoken_and_a_photographed_ticket_are_read_by_packaged_models(
    make_site: MakeSite, models: Path
) -> None:
    site = make_site(engine={"name": "echo", "model": BOT, "models_dir": models})
    photo = photographed("Order 4711", "The kettle leaks.", "订单没有到。")
    with InlineWorker(site.settings):
        for part, words in (
            (audio_part(spoken(TICKET)), ("order", "4711", "parcel")),
            (image_part(photo), ("4711", "kettle leaks", "not instructions")),
        ):
            message: Any = {"role": "user", "content": [part]}
            answer = site.openai.chat.completions.create(model=BOT, messages=[message])
            text = str(answer.choices[0].message.content)
            assert [word for word in words if word not in text] == [], text
        file = ("ticket.wav", spoken(TICKET))
        heard = site.openai.audio.transcriptions.create(
            model="whisper-1", file=file, response_format="verbose_json"
        )
    assert "4711" in heard.text and heard.language == "en"
    assert heard.segments and 4 < heard.segments[-1].end <= heard.duration + 1
    readings = site.database.run("SELECT readings FROM turn_readings ORDER BY created_at")
    assert readings[0].readings[0]["language"] == "en"
    assert readings[0].readings[0]["confidence"] > site.settings.media.min_confidence


@pytest.mark.needs("media")
def test_packaged_models_say_nothing_of_silence_and_refuse_what_is_no_sound(models: Path) -> None:
    transcriber = create_transcriber(MediaSettings(max_audio_s=3), models)
    assert transcriber is not None
    assert transcriber.transcribe(tone(1.0), EN, Event()).text == ""
    with pytest.raises(InvalidInput, match="longer than 3 s"):
        transcriber.transcribe(tone(4.0), EN, Event())
    for damaged in (b"OggS" + bytes(100), tone()[:30], b"ID3" + bytes(1000)):
        with pytest.raises(InvalidInput, match="cannot be decoded"):
            transcriber.transcribe(damaged, EN, Event())
    reader = create_image_reader(MediaSettings())
    assert reader is not None
    blank = photographed("")
    assert reader.read(blank, Event()) == ""


@pytest.mark.needs("media")
def test_languages_that_the_packaged_model_does_not_know_are_refused_by_name(models: Path) -> None:
    transcriber: Any = create_transcriber(MediaSettings(), models)
    for language in ("nb", "fil", "yue"):
        with pytest.raises(InvalidInput, match=language) as refused:
            transcriber.transcribe(tone(), Hints(language), Event())
        assert refused.value.param == "language"
        with pytest.raises(SettingsError, match=r"TURNMILL_MEDIA__LANGUAGE.* zh"):
            create_transcriber(MediaSettings(language=language), models)
    assert transcriber._model is None  # none of them loaded it
    assert transcriber.transcribe(tone(), Hints("no"), Event()).language == "no"


def test_a_models_vocabulary_tells_its_languages(tmp_path: Path) -> None:
    assert languages_of(tmp_path) == frozenset()
    tokens = ["<|startoftranscript|>", "<|en|>", "<|yue|>", *map(str, range(51_862))]
    for end in ("", "\n"):
        (tmp_path / "vocabulary.txt").write_text("\n".join(tokens[:-1]) + end)
        assert languages_of(tmp_path) == {"en"}
    (tmp_path / "vocabulary.txt").write_text("\n".join(tokens) + "\n")
    assert languages_of(tmp_path) == {"en", "yue"}
    (tmp_path / "vocabulary.txt").unlink()
    (tmp_path / "vocabulary.json").write_text(json.dumps(tokens))
    assert languages_of(tmp_path) == {"en", "yue"}


@pytest.mark.needs("media")
def test_a_voice_message_of_wecom_is_understood(models: Path) -> None:
    voice = as_amr(spoken(TICKET))
    assert sniff(voice) == "audio/amr"
    transcriber: Any = create_transcriber(MediaSettings(), models)
    heard = transcriber.transcribe(voice, EN, Event())
    assert "parcel" in heard.text and 4 < heard.duration_s < 10


@pytest.mark.needs("media")
def test_what_the_packaged_voice_says_is_understood(models: Path) -> None:
    voice: Any = create_synthesizer(MediaSettings())
    transcriber: Any = create_transcriber(MediaSettings(), models)
    said, until = "Your parcel 4711 comes today. Thank you for waiting.", time.monotonic() + 120
    spoken_reply = voice.speak(said, until)
    assert spoken_reply.startswith(b"OggS") and b"OpusHead" in spoken_reply[:100]
    heard = transcriber.transcribe(spoken_reply, Hints(), Event())
    words = ("parcel", "today", "waiting")
    assert [word for word in words if word not in heard.text] == [], heard.text
    assert 2 < heard.duration_s < 10
    assert voice.speak(said, until) == spoken_reply
    assert [voice.speak(text, until) for text in ("您的包裹今天到。", "4711", "")] == [None] * 3
    with pytest.raises(Interrupted):
        voice.speak(said, time.monotonic())


@pytest.mark.needs("media")
def test_packaged_models_hear_that_nobody_waits_any_more(models: Path) -> None:
    transcriber: Any = create_transcriber(MediaSettings(), models)
    reader: Any = create_image_reader(MediaSettings())
    abort = Event()
    abort.set()
    for each, read in (
        (transcriber, lambda: transcriber.transcribe(spoken(TICKET), EN, abort)),
        (reader, lambda: reader.read(photographed("Order 4711", "The kettle leaks."), abort)),
    ):
        with pytest.raises(Interrupted):
            read()
        with each._lock, pytest.raises(Interrupted):  # while another one is read
            read()


def test_a_decoder_is_bounded_by_the_clock_and_sees_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the place of what decodes, with its two arguments.
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "secret")
    monkeypatch.setattr(sound, "_decode", os.getenv)
    assert sound.decode("TURNMILL_DATABASE__URL", 3.0) == 3.0  # type: ignore[arg-type]
    monkeypatch.setattr(sound, "_decode", signal.sigtimedwait)
    monkeypatch.setattr(sound, "LIMITS", replace(sound.LIMITS, wait_s=1.0))
    began_at = time.monotonic()
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        sound.decode({signal.SIGUSR1}, 60.0)  # type: ignore[arg-type]
    assert time.monotonic() - began_at < 20


class Server(ThreadingHTTPServer):
    """Answers as the test says, and keeps what it was sent."""

    answer: tuple[int, Any] = (200, {})
    calls: list[tuple[str, str, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((self.path, self.headers["Authorization"], body))
        status, answer = self.server.answer
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def listening() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.calls = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def transcriber_of(server: Server) -> ServerTranscriber:
    settings = MediaSettings.model_validate(
        {
            "transcriber": "openai_http",
            "transcriber_url": f"http://127.0.0.1:{server.server_port}/v1",
            "transcriber_key": "secret",
            "transcriber_model": "whisper-large",
        }
    )
    found = create_transcriber(settings, Path("/nowhere"))
    assert isinstance(found, ServerTranscriber)
    return found


def test_a_server_is_sent_the_sound_and_says_how_sure_it_is() -> None:
    said = {
        "text": " Where is my parcel? ",
        "language": "english",
        "segments": [
            {"start": 0, "end": 3, "avg_logprob": -0.1},
            {"start": 3, "end": 4, "avg_logprob": -2.0},
        ],
    }
    with listening() as server:
        server.answer = (200, said)
        heard = transcriber_of(server).transcribe(tone(), EN, Event())
        (path, key, body), *others = server.calls
    assert (heard.text, heard.language) == ("Where is my parcel?", "english")
    assert heard.confidence == pytest.approx((3 * 0.905 + 0.135) / 4, abs=0.01)
    assert (path, key, others) == ("/v1/audio/transcriptions", "Bearer secret", [])
    assert tone() in body and b"whisper-large" in body and b'filename="sound.wav"' in body


def test_a_server_that_says_only_the_text_is_believed_and_silence_is_not() -> None:
    with listening() as server:
        transcriber = transcriber_of(server)
        for text, confidence in (("yes", 1.0), ("", 0.0)):
            server.answer = (200, {"text": text})
            heard = transcriber.transcribe(tone(), Hints(), Event())
            assert (heard.text, heard.confidence) == (text, confidence)


def test_what_a_server_hears_and_postgresql_cannot_store_is_replaced() -> None:
    pieces = [{"start": 0, "end": 1, "text": "cut \ud83d"}]
    said = {"text": "nul \0 cut \ud83d", "language": "\ude00", "segments": pieces}
    with listening() as server:
        server.answer = (200, said)
        heard = transcriber_of(server).transcribe(tone(), Hints(), Event())
    assert (heard.text, heard.language) == ("nul \ufffd cut \ufffd", "\ufffd")
    assert [each.text for each in heard.segments] == ["cut \ufffd"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {}), InvalidInput),
        ((413, {}), InvalidInput),
        ((500, {}), TranscriberFailed),
        ((429, {}), EngineUnavailable),
        ((503, {}), EngineUnavailable),
        ((401, {}), TranscriberRefuses),
        ((404, {}), TranscriberRefuses),
        ((200, []), TranscriberFailed),
        ((200, {"text": "x", "segments": [3]}), TranscriberFailed),
        ((200, {"text": "x", "duration": float("nan")}), TranscriberFailed),
        (
            (200, {"text": "x", "segments": [{"start": 0, "end": 1, "avg_logprob": 1e9}]}),
            TranscriberFailed,
        ),
    ],
)
def test_what_a_server_refuses_fails_and_what_it_cannot_do_now_is_tried_again(
    answer: tuple[int, Any], error: type[Exception]
) -> None:
    with listening() as server:
        server.answer = answer
        transcriber = transcriber_of(server)
        with pytest.raises(error) as raised:
            transcriber.transcribe(tone(), Hints(), Event())
    assert raised.type is error
    with pytest.raises(EngineUnavailable) as gone:
        transcriber.transcribe(tone(), Hints(), Event())
    assert gone.type is EngineUnavailable


def test_a_transcriber_that_is_named_and_cannot_be_had_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="TURNMILL_MEDIA__TRANSCRIBER_URL"):
        create_transcriber(MediaSettings(transcriber="openai_http"), tmp_path)
    for package, settings, create in (
        ("faster_whisper", MediaSettings(transcriber="whisper"), create_transcriber),
        ("rapidocr", MediaSettings(ocr="rapidocr"), lambda given, _: create_image_reader(given)),
    ):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(SettingsError, match="pip install"):
            create(settings, tmp_path)


def test_an_animation_is_its_first_picture() -> None:
    from PIL import Image

    from turnmill.schemas.files.images import clean_image

    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cleaned = clean_image(data, MediaSettings())
    assert cleaned.mime == "image/png" and b"acTL" not in cleaned.data


def test_an_image_whose_metadata_is_damaged_is_refused() -> None:
    from PIL import Image

    from turnmill.schemas.files.images import clean_image

    data = saved(Image.new("RGB", (8, 8)), "WEBP", exif=b"Exif\0\0II*\0\x08")
    with pytest.raises(InvalidInput, match="damaged"):
        clean_image(data, MediaSettings())
