"""Images, sound and files in messages: checked, stored by reference, shown or read."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from threading import Event
from typing import Any

import openai
import pytest
from PIL import Image

from tests.integration.media.conftest import BOT, MakeSite, Site
from tests.integration.media.making import (
    audio_part,
    bomb,
    data_url,
    image_part,
    photographed,
    saved,
    tone,
)
from turnmill.producer.tenants import save_bot
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import EngineUnavailable, InvalidInput
from turnmill.schemas.files.images import CleanImage
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.media.base import Hints, Transcript
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.abort import Interrupted

TICKET = photographed("Order 4711", "The kettle leaks.")


class Heard:
    """A transcriber that hears what `script` says, one sound after the other."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.sounds: list[bytes] = []

    def transcribe(self, sound: bytes, hints: Hints, abort: Event) -> Transcript:
        self.sounds.append(sound)
        heard = self.script.pop(0) if self.script else "Where is my parcel?"
        if isinstance(heard, Exception):
            raise heard
        if callable(heard):
            return heard(abort)
        return heard if isinstance(heard, Transcript) else Transcript(text=heard, confidence=0.9)


class Read:
    """A reader of images that reads a ticket in each."""

    text = "Order 4711"

    def read(self, image: bytes, abort: Event) -> str:
        Image.open(io.BytesIO(image)).load()
        return self.text


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard = Heard()
    monkeypatch.setattr("turnmill.workers.media.opening.create_transcriber", lambda *_: heard)
    return heard


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Read:
    reader = Read()
    monkeypatch.setattr("turnmill.workers.media.opening.create_image_reader", lambda _: reader)
    return reader


@pytest.fixture(autouse=True)
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here."""
    for name in ("create_transcriber", "create_image_reader"):
        monkeypatch.setattr(f"turnmill.workers.media.opening.{name}", lambda *_: None)


@contextmanager
def answering(site: Site) -> Iterator[Site]:
    with InlineWorker(site.settings):
        yield site


@pytest.fixture
def seeing(make_site: MakeSite, no_readers: None) -> Iterator[Site]:
    with answering(make_site(engine={"name": "echo", "model": BOT, "echo_can_see": True})) as site:
        yield site


@pytest.fixture
def listening(site: Site, no_readers: None, heard: Heard) -> Iterator[Site]:
    with answering(site):
        yield site


@pytest.fixture
def reading(site: Site, no_readers: None, reads: Read) -> Iterator[Site]:
    with answering(site):
        yield site


def ask(site: Site, *parts: Any, **fields: Any) -> str:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    message: Any = {"role": "user", "content": content}
    answer = site.openai.chat.completions.create(model=BOT, messages=[message], **fields)
    return str(answer.choices[0].message.content)


def test_a_model_that_sees_is_shown_the_image_from_the_storage(seeing: Site) -> None:
    assert ask(seeing, "What is this?", image_part(TICKET)).startswith(
        "What is this?\n[image/png, "
    )
    uploaded = seeing.upload(TICKET)
    part = {"type": "image_url", "image_url": {"url": uploaded.id}}
    assert "[image/png, " in ask(seeing, "And this?", part)
    assert "[image/png, " in ask(seeing, {"type": "file", "file": {"file_id": uploaded.id}})


def test_a_turn_has_a_reference_and_no_byte_of_an_image(seeing: Site) -> None:
    ask(seeing, image_part(TICKET))
    (turn,) = seeing.database.run("SELECT input FROM turns")
    (file,) = seeing.database.run("SELECT id, purpose FROM files")
    assert turn.input[0]["content"] == [
        {"type": "image", "file_id": f"file_{file.id.hex}", "url": None}
    ]
    assert file.purpose == "message"
    assert list(seeing.openai.files.list()) == []


def test_a_call_that_is_repeated_asks_for_the_same_turn_and_stores_one_file(seeing: Site) -> None:
    for _ in range(2):
        ask(seeing, image_part(TICKET), extra_headers={"Idempotency-Key": "once"})
    ask(seeing, "Another turn", image_part(TICKET))
    assert len(seeing.stored()) == 1
    assert seeing.database.run("SELECT count(*) AS n FROM turns")[0].n == 2


def test_what_is_stored_has_pixels_alone_upright_and_of_a_bounded_size(seeing: Site) -> None:
    photo = Image.new("RGB", (3000, 1500), "red")
    exif = Image.Exif()
    exif[0x010F] = "a canary camera"
    exif[0x0112] = 6  # turned by a quarter
    photo_with_place = saved(photo, "JPEG", exif=exif) + b"bytes behind the end"
    ask(seeing, image_part(photo_with_place))
    (path,) = seeing.stored()
    stored = path.read_bytes()
    assert b"canary" not in stored and b"behind the end" not in stored
    image = Image.open(io.BytesIO(stored))
    assert image.size == (1024, 2048)
    assert not image.getexif()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bomb(), "pixels"),
        (TICKET[: len(TICKET) // 2], "damaged"),
        (TICKET + b"PK\x05\x06" + bytes(18), "another kind of file"),
        (b"GIF89a/*<script>*/" + bytes(600), "another kind of file"),
        (b"\xff\xd8\xff\xe0<!DOCTYPE html>" + bytes(600), "another kind of file"),
        (b"%PDF-1.7\n" + TICKET, "application/pdf"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text/plain"),
        (b"MZ" + bytes(100), "application/octet-stream"),
        (b"\x89PNG\r\n\x1a\n" + bytes(11 * 1024 * 1024), "Send a smaller one"),
        (b"", "The image is empty"),
    ],
    ids=["bomb", "cut", "zip", "script", "html", "pdf", "svg", "program", "large", "empty"],
)
def test_what_is_no_honest_image_is_refused_by_name(
    make_site: MakeSite, data: bytes, reason: str
) -> None:
    site = make_site(
        engine={"name": "echo", "model": BOT, "echo_can_see": True},
        api={"max_body_bytes": 64 * 1024 * 1024},
    )
    with pytest.raises(openai.BadRequestError, match=reason) as refused:
        ask(site, image_part(data))
    assert refused.value.param == "messages"
    assert site.stored() == []
    assert site.database.run("SELECT 1 FROM turns") == []


def test_images_that_are_decoded_keep_no_other_call_waiting(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def decode(data: bytes, limits: Any) -> CleanImage:
        begun.release()
        assert go_on.wait(60)
        return CleanImage(data, "image/png")

    monkeypatch.setattr("turnmill.schemas.files.parts.clean_image", decode)
    monkeypatch.setattr("turnmill.producer.api.services.MAX_MEDIA_CALLS", 9)
    site = make_site(engine={"name": "echo", "model": BOT, "echo_can_see": True})
    with answering(site), ThreadPoolExecutor(12) as threads:
        # More than there are threads for other calls.
        images = [image_part(photographed(str(number))) for number in range(12)]
        calls = [threads.submit(ask, site, image) for image in images]
        try:
            refused = [call.exception() for call in islice(as_completed(calls, 60), 3)]
            assert begun.acquire(timeout=30)
            assert not begun.acquire(blocking=False)
            assert ask(site, "Hello!") == "Hello!"
        finally:
            go_on.set()
        for error in refused:
            assert isinstance(error, openai.InternalServerError)
            assert "too many images" in str(error)
            assert error.response.headers["retry-after"]
        assert sum("[image/png, " in call.result() for call in calls if not call.exception()) == 9


@pytest.mark.parametrize(
    "url", ["https://a.example/1.png", "http://169.254.169.254/", "file:///etc/passwd", "data:,x"]
)
def test_no_foreign_address_is_asked_for_an_image(seeing: Site, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="nobody fetches them"):
        ask(seeing, {"type": "image_url", "image_url": {"url": url}})


def test_a_file_of_another_tenant_cannot_be_shown(seeing: Site) -> None:
    stranger = seeing.client("stranger").files.create(file=("a.png", TICKET), purpose="vision")
    ask(seeing, image_part(TICKET))
    for file_id in (stranger.id, f"file_{'0' * 32}"):
        with pytest.raises(openai.NotFoundError, match="no file"):
            ask(seeing, {"type": "image_url", "image_url": {"url": file_id}})


def test_what_no_worker_takes_is_refused_with_what_to_do(site: Site) -> None:
    with answering(site):
        for part, kind in ((image_part(TICKET), "image"), (audio_part(tone()), "audio")):
            with pytest.raises(openai.BadRequestError, match=f"accepts: {kind}") as refused:
                ask(site, "See", part)
            assert refused.value.param == "messages[0].content"
            assert "docs/media.md" in str(refused.value)


def test_a_text_file_is_read_as_the_user_s_words(site: Site) -> None:
    with answering(site):
        inline = {
            "type": "file",
            "file": {"file_data": data_url(b"Kettle leaks"), "filename": "../a.txt"},
        }
        assert ask(site, "Read this:", inline) == "Read this:\na.txt:\nKettle leaks"
        uploaded = site.upload("茶壶漏水".encode(), "工单.md")
        named = {"type": "file", "file": {"file_id": uploaded.id}}
        assert ask(site, named) == "工单.md:\n茶壶漏水"
        with pytest.raises(openai.BadRequestError, match="application/pdf"):
            ask(site, {"type": "file", "file": {"file_data": data_url(b"%PDF-1.7\n")}})


def test_a_spoken_message_is_answered_by_what_was_heard(listening: Site, heard: Heard) -> None:
    assert ask(listening, audio_part(tone())) == "Where is my parcel?"
    assert heard.sounds == [tone()]
    (row,) = listening.database.run("SELECT readings FROM turn_readings")
    assert row.readings[0]["text"] == "Where is my parcel?"


def test_later_turns_remember_what_was_heard(listening: Site, heard: Heard) -> None:
    headers = {"X-Turnmill-Conversation": "mine"}
    ask(listening, audio_part(tone()), extra_headers=headers)
    ask(listening, "[[tokens=1]] and now?", extra_headers=headers)
    (row,) = listening.database.run(
        "SELECT prompt_tokens FROM replies ORDER BY created_at DESC LIMIT 1"
    )
    # "Where is my parcel?" twice (said, and repeated by the bot), and the two words of the turn.
    assert row.prompt_tokens == 4 + 4 + 3


def test_an_earlier_image_is_named_to_a_model_that_does_not_see(
    seeing: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"X-Turnmill-Conversation": "mine"}
    ask(seeing, "See", image_part(TICKET), extra_headers=headers)
    prompts: list[Prompt] = []
    monkeypatch.setattr(
        EchoEngine, "count_tokens", lambda _, prompt: prompts.append(prompt) or len(prompts)
    )
    monkeypatch.setattr(EchoEngine, "capabilities", Capabilities())
    assert ask(seeing, "And now?", extra_headers=headers) == "And now?"
    said = [message.content for prompt in prompts for message in prompt.messages]
    assert "See\n[image]" in said
    assert all(isinstance(content, str) for content in said)


def test_an_image_is_read_for_a_model_that_does_not_see_and_is_no_instruction(
    reading: Site, reads: Read
) -> None:
    answer = ask(reading, "What does it say?", image_part(TICKET))
    assert "Order 4711" in answer and "not instructions" in answer
    reads.text = ""
    other = photographed("nothing")
    assert ask(reading, "And this?", image_part(other)) == "And this?\n[An image without text]"


def test_what_was_read_of_an_image_is_pinned_without_what_cannot_be_stored(
    reading: Site, reads: Read
) -> None:
    reads.text = "Order \ud83d and \0"
    assert "Order \ufffd and \ufffd" in ask(reading, "What does it say?", image_part(TICKET))


@pytest.mark.parametrize("heard_as", [Transcript(text="mumble", confidence=0.1), ""])
def test_what_was_not_understood_is_asked_for_again(
    listening: Site, heard: Heard, heard_as: Any
) -> None:
    heard.script = [heard_as]
    assert "say it again" in ask(listening, audio_part(tone()))


def test_a_bot_asks_in_its_own_words(listening: Site, heard: Heard) -> None:
    policies = Policies.model_validate({"texts": {"unclear": "Noch einmal, bitte."}})
    save_bot(
        listening.database, listening.tenant_id, BOT, BOT, "", GenerationParams(), policies=policies
    )
    heard.script = [""]
    assert ask(listening, audio_part(tone())) == "Noch einmal, bitte."


def test_what_is_read_is_stored_masked_where_messages_are(listening: Site, heard: Heard) -> None:
    pytest.importorskip("phonenumbers", reason="pip install 'turnmill[personal]'")
    policies = Policies.model_validate({"safety": {"stored": "masked"}})
    save_bot(
        listening.database, listening.tenant_id, BOT, BOT, "", GenerationParams(), policies=policies
    )
    heard.script = ["Call me at +49 30 123456, please!"]
    assert ask(listening, audio_part(tone())) == "Call me at <phone>, please!"
    (row,) = listening.database.run("SELECT readings FROM turn_readings")
    assert row.readings[0]["text"] == "Call me at <phone>, please!"


def test_a_second_attempt_reads_what_the_first_one_heard(listening: Site, heard: Heard) -> None:
    heard.script = ["first [[unavailable]]", "second"]
    with pytest.raises(openai.OpenAIError):
        ask(listening, audio_part(tone()), timeout=3)
    rows = listening.database.run("SELECT readings FROM turn_readings")
    assert [row.readings[0]["text"] for row in rows] == ["first [[unavailable]]"]
    assert len(heard.sounds) == 1
    assert listening.database.run("SELECT max(attempt) AS n FROM turns")[0].n > 1


def test_a_transcriber_that_is_away_is_asked_again(listening: Site, heard: Heard) -> None:
    heard.script = [EngineUnavailable("away"), "Here I am."]
    assert ask(listening, audio_part(tone())) == "Here I am."


def test_a_turn_whose_time_is_up_stops_its_transcriber(listening: Site, heard: Heard) -> None:
    stopped = threading.Event()

    def hear_until_aborted(abort: Event) -> Transcript:
        assert abort.wait(20)
        stopped.set()
        raise Interrupted

    heard.script = [hear_until_aborted]
    with pytest.raises(openai.InternalServerError) as late:
        ask(listening, audio_part(tone()), extra_headers={"X-Turnmill-Timeout": "1"})
    assert late.value.code == "deadline_exceeded"
    assert stopped.is_set()


def test_a_sound_that_cannot_be_decoded_fails_its_turn_with_the_reason(
    listening: Site, heard: Heard
) -> None:
    heard.script = [InvalidInput("The sound cannot be decoded: it is damaged or no speech.")]
    with pytest.raises(openai.BadRequestError, match="cannot be decoded"):
        ask(listening, audio_part(tone()))


def test_a_file_that_was_deleted_before_the_answer_fails_its_turn(
    site: Site, heard: Heard, eventually: Callable[..., None]
) -> None:
    with answering(site):
        pass  # a worker that hears was there
    with pytest.raises(openai.OpenAIError):
        ask(site, audio_part(tone()), timeout=0.5)
    (file,) = site.database.run("SELECT id FROM files")
    site.openai.files.delete(f"file_{file.id.hex}")
    with answering(site):
        eventually(lambda: site.database.run("SELECT 1 FROM turns WHERE state = 'failed'"))
    (turn,) = site.database.run("SELECT error_code, error_message FROM turns")
    assert turn.error_code == "not_found" and "was deleted" in turn.error_message
