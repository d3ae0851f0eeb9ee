"""`/v1/audio/transcriptions`, by the official client: a worker hears the sound, the call waits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
import structlog

from tests.integration.media.conftest import MakeSite, Site
from tests.integration.media.making import tone
from turnmill.producer.api.app import Server
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.errors import EngineUnavailable, InvalidInput
from turnmill.schemas.files.files import Purpose
from turnmill.schemas.files.opening import open_files
from turnmill.schemas.store.files.transcriptions import (
    MAX_ATTEMPTS,
    MAX_FAILURES,
    can_transcribe,
    claim,
    end,
    want,
)
from turnmill.workers.media.base import (
    Hints,
    Segment,
    TranscriberFailed,
    TranscriberRefuses,
    Transcript,
)
from turnmill.workers.media.opening import open_media
from turnmill.workers.media.transcriptions import Stenographer
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.abort import Interrupted

WORKER = {"concurrency": 4, "lease_s": 1.5}
HEARD = Transcript(
    text="Where is my parcel?",
    confidence=0.9,
    language="en",
    duration_s=2.5,
    segments=(Segment(start=0, end=2.5, text=" Where is my parcel?", avg_logprob=-0.1),),
)


class Ear:
    """Hears what `script` says, one sound after the other; `None` goes on until it is aborted."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.hints: list[Hints] = []
        self.aborted = threading.Event()

    def transcribe(self, sound: bytes, hints: Hints, abort: threading.Event) -> Transcript:
        assert sound == tone()
        self.hints.append(hints)
        heard = self.script.pop(0) if self.script else HEARD
        if heard is None:
            assert abort.wait(20)
            self.aborted.set()
            raise Interrupted
        if isinstance(heard, Exception):
            raise heard
        assert isinstance(heard, Transcript)
        return heard


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Ear:
    ear = Ear()
    monkeypatch.setattr("turnmill.workers.media.opening.create_transcriber", lambda *_: ear)
    return ear


@pytest.fixture
def site(make_site: MakeSite, ear: Ear) -> Iterator[Site]:
    site = make_site(worker=WORKER, media={"language": "de", "max_audio_bytes": 20_000})
    with InlineWorker(site.settings):
        yield site


def transcribe(site: Site, sound: bytes = tone(), name: str = "ticket.wav", **more: Any) -> Any:
    """Ask as a program does: by the official client."""
    given = {"model": "whisper-1", "file": (name, sound), **more}
    return site.openai.audio.transcriptions.create(**given)


def left(site: Site) -> tuple[list[Any], list[Any], list[Any]]:
    """What is kept of sounds and transcripts."""
    rows = [site.database.run(f"SELECT * FROM {table}") for table in ("files", "transcriptions")]
    return rows[0], rows[1], site.stored()


def test_a_sound_is_transcribed_in_each_format_and_nothing_of_it_is_kept(site: Site) -> None:
    assert transcribe(site).text == HEARD.text
    assert transcribe(site, response_format="text") == f"{HEARD.text}\n"
    verbose = transcribe(site, response_format="verbose_json", timestamp_granularities=["segment"])
    assert (verbose.text, verbose.language, verbose.duration) == (HEARD.text, "en", 2.5)
    (segment,) = verbose.segments
    assert (segment.start, segment.end, segment.avg_logprob) == (0, 2.5, -0.1)
    assert verbose.usage.seconds == 3
    assert left(site) == ([], [], [])


def test_a_transcript_with_half_a_character_in_it_is_stored_without(site: Site, ear: Ear) -> None:
    piece = Segment(start=0, end=1, text="cut \ud83d")
    ear.script = [Transcript(text="cut \ud83d", confidence=0.9, language="\0", segments=(piece,))]
    heard = transcribe(site, response_format="verbose_json")
    assert (heard.text, heard.language, heard.segments[0].text) == (
        "cut \ufffd",
        "\ufffd",
        "cut \ufffd",
    )


def test_language_and_prompt_reach_the_transcriber(site: Site, ear: Ear) -> None:
    transcribe(site, language="zh", prompt="ACME, Turnmill", temperature=0)
    transcribe(site)
    assert ear.hints == [Hints("zh", "ACME, Turnmill"), Hints("de", None)]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"response_format": "srt"}, "response_format"),
        ({"stream": True}, "stream"),
        ({"temperature": 0.4}, "temperature"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"include": ["logprobs"]}, "include[]"),
        ({"language": "English"}, "language"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"sound": b"Where is my parcel?"}, "file"),
        ({"sound": b""}, "file"),
        ({"sound": tone() + b"PK\x05\x06" + bytes(18)}, "file"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    site: Site, ear: Ear, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        transcribe(site, **given)
    assert refused.value.param == field
    assert ear.hints == []
    assert left(site) == ([], [], [])


def test_a_sound_that_was_read_to_its_end_before_is_called_empty(site: Site, ear: Ear) -> None:
    with pytest.raises(openai.BadRequestError, match="The sound is empty"):
        transcribe(site, b"")


def test_an_unknown_model_and_a_large_sound_are_refused(site: Site, ear: Ear) -> None:
    with pytest.raises(openai.NotFoundError, match="whisper-1"):
        transcribe(site, model="gpt-4o-transcribe")
    with pytest.raises(openai.APIStatusError) as refused:
        transcribe(site, tone(2.0))
    assert (refused.value.status_code, refused.value.param) == (413, "file")
    assert ear.hints == []


def test_without_a_worker_that_transcribes_the_call_ends_at_once(make_site: MakeSite) -> None:
    site = make_site(worker=WORKER)
    with pytest.raises(openai.InternalServerError) as refused:
        transcribe(site)
    assert (refused.value.status_code, refused.value.code) == (503, "model_unavailable")
    assert "docs/media.md" in str(refused.value)


def test_what_a_transcriber_refuses_is_the_callers_and_what_it_cannot_do_now_is_tried_again(
    site: Site, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.media.transcriptions.RETRY_S", 0.0)
    ear.script = [InvalidInput("The sound is longer than 300 s.")]
    with pytest.raises(openai.BadRequestError, match="longer than"):
        transcribe(site)
    ear.script = [EngineUnavailable("away")] * (MAX_ATTEMPTS + MAX_FAILURES)
    assert transcribe(site).text == HEARD.text
    ear.script = [InvalidInput("The speech model does not know 'nb'.", param="language")]
    with pytest.raises(openai.BadRequestError) as unknown:
        transcribe(site, language="nb")
    assert unknown.value.param == "language"


def test_a_sound_that_the_transcriber_fails_at_is_given_up_after_some_attempts(
    site: Site, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.media.transcriptions.RETRY_S", 0.0)
    failed = [TranscriberFailed("The transcriber answers 500.")]
    ear.script = [*failed * (MAX_FAILURES - 1), EngineUnavailable("away"), HEARD]
    assert transcribe(site).text == HEARD.text
    ear.hints.clear()
    ear.script = failed * MAX_FAILURES
    with pytest.raises(
        openai.InternalServerError, match=f"failed {MAX_FAILURES} times"
    ) as given_up:
        transcribe(site)
    assert (given_up.value.status_code, given_up.value.code) == (500, "no_result")
    assert given_up.value.response.headers["x-should-retry"] == "false"
    assert len(ear.hints) == MAX_FAILURES
    assert left(site) == ([], [], [])


def test_a_transcriber_that_refuses_its_worker_ends_the_call_at_once_and_the_log_has_the_remedy(
    site: Site, ear: Ear
) -> None:
    ear.script = [TranscriberRefuses("The transcriber answers 401: set the key.")]
    with structlog.testing.capture_logs() as logs, pytest.raises(openai.APIStatusError) as refused:
        transcribe(site)
    assert (refused.value.status_code, refused.value.code) == (500, "no_result")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(ear.hints) == 1 and "401" not in str(refused.value)
    (told,) = [each for each in logs if each["event"] == "transcription.refused"]
    assert "401" in told["error"]


def test_a_transcriber_that_stays_away_is_named_and_the_call_may_be_repeated(
    make_site: MakeSite, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.media.transcriptions.RETRY_S", 20.0)
    site = make_site(worker=WORKER, api={"wait_s": 2.0})
    ear.script = [EngineUnavailable("away")]
    with InlineWorker(site.settings), pytest.raises(openai.InternalServerError) as refused:
        transcribe(site)
    assert (refused.value.status_code, refused.value.code) == (503, "engine_unavailable")
    assert refused.value.response.headers["x-should-retry"] == "true"
    assert "away" not in str(refused.value)
    assert left(site) == ([], [], [])


def test_what_breaks_at_a_sound_ends_its_call_and_is_logged_without_its_words(
    site: Site, ear: Ear
) -> None:
    ear.script = [ValueError("my secret words")]
    with structlog.testing.capture_logs() as logs, pytest.raises(openai.APIStatusError) as broken:
        transcribe(site)
    assert (broken.value.status_code, broken.value.code) == (500, "internal_error")
    assert broken.value.response.headers["x-should-retry"] == "false"
    assert len(ear.hints) == 1
    (told,) = [each for each in logs if each["event"] == "transcription.broken"]
    assert told["error"] == "ValueError" and "secret" not in str(logs)


class Deaf(Ear):
    """Hears nothing of an abort, as a transcriber in the middle of a segment."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def transcribe(self, sound: bytes, hints: Hints, abort: threading.Event) -> Transcript:
        self.hints.append(hints)
        assert self.free.wait(30)
        raise SystemExit  # with its process


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stopping_workers_use_up_no_attempt_and_others_begin_at_once(
    make_site: MakeSite,
    ear: Ear,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    site = make_site(worker={**WORKER, "lease_s": 60.0})
    ear.script = [None] * (MAX_ATTEMPTS + 1)
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(transcribe(site).text))
    for count in range(1, MAX_ATTEMPTS + 2):
        with InlineWorker(site.settings):
            if count == 1:
                caller.start()
            eventually(lambda count=count: len(ear.hints) == count)
    deaf = Deaf()
    with monkeypatch.context() as patch:
        patch.setattr("turnmill.workers.media.opening.create_transcriber", lambda *_: deaf)
        with InlineWorker(site.settings):
            eventually(lambda: deaf.hints)
    with InlineWorker(site.settings):
        caller.join(20)
        deaf.free.set()
    assert found == [HEARD.text]


def test_a_draining_worker_takes_no_sound_and_does_not_count(
    make_site: MakeSite, ear: Ear, eventually: Callable[..., None]
) -> None:
    site = make_site(worker=WORKER, api={"model_grace_s": 0.0})
    ear.script = [HEARD]
    with InlineWorker(site.settings) as running:
        assert transcribe(site).text == HEARD.text
        running.worker.leases.stop_consuming()
        eventually(lambda: "stenographer" not in [each.name for each in threading.enumerate()])
        eventually(lambda: not can_transcribe(site.database, 0.0))
        assert can_transcribe(site.database, 60.0)
        with pytest.raises(openai.InternalServerError) as refused:
            transcribe(site)
    assert refused.value.code == "model_unavailable"


def stored(site: Site, tenant_id: Any) -> Any:
    """A sound of a tenant."""
    given = {"tenant_id": tenant_id, "name": "ticket.wav", "purpose": Purpose.MESSAGE}
    with site.storage.draft() as draft:
        draft.write(tone())
        return open_files(site.database, site.settings).save(draft, **given)


def test_tenants_take_turns(make_site: MakeSite, ear: Ear) -> None:
    site = make_site()
    tenants = [site.tenant_id] * 3 + [create_tenant(site.database, "other", site.settings)]
    for number, tenant_id in enumerate(tenants):
        file = stored(site, tenant_id)
        want(site.database, file, None, str(number), wait_s=60.0, max_waiting=9)
    media = open_media(site.database, site.settings)
    stenographer = Stenographer(media, ear, 60.0, threading.Event())
    assert [stenographer.transcribe_next() for _ in range(5)] == [True] * 4 + [False]
    assert [each.prompt for each in ear.hints] == ["0", "3", "1", "2"]


def test_a_sound_that_postgres_refuses_to_change_holds_up_no_other(
    make_site: MakeSite, ear: Ear
) -> None:
    site = make_site()
    for number in range(3):
        file = stored(site, site.tenant_id)
        want(site.database, file, None, str(number), wait_s=60.0, max_waiting=9)
    site.database.run(
        "ALTER TABLE transcriptions ADD CONSTRAINT refuses "
        "CHECK (prompt <> '0' OR attempt = 0) NOT VALID"
    )
    media = open_media(site.database, site.settings)
    stenographer = Stenographer(media, ear, 60.0, threading.Event())
    with structlog.testing.capture_logs() as logs:
        assert [stenographer.transcribe_next() for _ in range(3)] == [True, True, False]
    assert [each.prompt for each in ear.hints] == ["1", "2"]
    told = [each for each in logs if each["event"] == "transcription.sweep_failed"]
    assert len(told) == 1
    assert "0" not in told[0].values()


def test_a_tenants_sounds_that_wait_are_bounded_and_delay_no_other_tenants(
    make_site: MakeSite, ear: Ear, eventually: Callable[..., None]
) -> None:
    site = make_site(worker=WORKER, media={"max_waiting_sounds": 1}, api={"wait_s": 5.0})
    ear.script = [None]

    def first() -> None:
        with suppress(openai.InternalServerError):
            transcribe(site)

    caller = threading.Thread(target=first)
    with InlineWorker(site.settings):
        caller.start()
        eventually(lambda: ear.hints)
        with pytest.raises(openai.RateLimitError, match="MAX_WAITING_SOUNDS") as refused:
            transcribe(site)
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["Retry-After"]) > 0
        other = stored(site, create_tenant(site.database, "other", site.settings))
        want(site.database, other, None, None, wait_s=60.0, max_waiting=1)
        caller.join(20)
        assert transcribe(site).text == HEARD.text


def test_nobody_transcribes_what_no_call_waits_for(make_site: MakeSite) -> None:
    site = make_site()
    want(site.database, stored(site, site.tenant_id), None, None, wait_s=-1.0, max_waiting=1)
    assert claim(site.database, 1.0) is None
    want(site.database, stored(site, site.tenant_id), None, None, wait_s=60.0, max_waiting=1)
    assert claim(site.database, 1.0) is not None


def test_a_call_that_waits_is_not_forgotten_at_a_step_of_the_clock(
    make_site: MakeSite, ear: Ear, eventually: Callable[..., None]
) -> None:
    """After a step forward, its time to wait is over by the clock; the call says that it waits."""
    site = make_site(worker=WORKER)
    ear.script = [EngineUnavailable("away"), HEARD]
    heard: list[str] = []
    with InlineWorker(site.settings):
        caller = threading.Thread(target=lambda: heard.append(transcribe(site).text))
        caller.start()
        eventually(lambda: site.database.run(
            "UPDATE transcriptions SET wanted_until = clock_timestamp() - interval '1 hour' "
            "WHERE error_code IS NOT NULL RETURNING file_id"
        ))  # fmt: skip
        caller.join(20)
    assert heard == [HEARD.text]


def test_a_sound_that_nobody_waits_for_is_given_up_between_two_segments(
    make_site: MakeSite, ear: Ear
) -> None:
    site = make_site(worker=WORKER, api={"wait_s": 1.0})
    ear.script = [None]
    with InlineWorker(site.settings):
        with pytest.raises(openai.InternalServerError) as refused:
            transcribe(site)
        assert (refused.value.status_code, refused.value.code) == (504, "wait_timeout")
        assert left(site) == ([], [], [])
        assert ear.aborted.wait(10)
        assert transcribe(site).text == HEARD.text


def test_what_a_dead_worker_had_is_transcribed_by_another_and_the_dead_one_changes_nothing(
    make_site: MakeSite, ear: Ear, eventually: Callable[..., None]
) -> None:
    site = make_site(worker=WORKER)
    with InlineWorker(site.settings):
        eventually(lambda: site.database.run("SELECT 1 FROM worker_liveness"))
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(transcribe(site).text))
    caller.start()
    tasks: list[Any] = []
    eventually(lambda: tasks.append(claim(site.database, 1.0)) or tasks[-1])
    dead = tasks[-1]
    with InlineWorker(site.settings):
        eventually(lambda: ear.hints)
        assert not end(site.database, dead, {"text": "stale"})
        caller.join(20)
    assert found == [HEARD.text]


def test_a_stopping_server_tells_its_callers(
    make_site: MakeSite, ear: Ear, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    servers: list[Server] = []
    made = Server.__init__
    monkeypatch.setattr(
        Server, "__init__", lambda self, given: (servers.append(self), made(self, given))[0]
    )
    site = make_site(worker=WORKER)
    ear.script = [None]
    errors: list[Any] = []

    def call() -> None:
        try:
            transcribe(site)
        except openai.InternalServerError as error:
            errors.append((error.status_code, error.code))

    with InlineWorker(site.settings):
        caller = threading.Thread(target=call)
        caller.start()
        eventually(lambda: ear.hints)
        servers[0].should_exit = True
        caller.join(20)
    assert errors == [(503, "stopping")]


def test_what_a_process_left_behind_goes_with_its_file(make_site: MakeSite) -> None:
    site = make_site()
    files = open_files(site.database, site.settings)
    with site.storage.draft() as draft:
        draft.write(tone())
        given = {"tenant_id": site.tenant_id, "name": "ticket.wav", "purpose": Purpose.MESSAGE}
        file = files.save(draft, expires_at=datetime.now(UTC) - timedelta(seconds=1), **given)
    want(site.database, file, "en", "Alice", wait_s=60.0, max_waiting=1)
    assert len(left(site)[1]) == 1
    assert site.prune()["files"] == 1
    assert left(site) == ([], [], [])
