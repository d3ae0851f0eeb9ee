"""The stenographer: transcribes the sounds that calls of the API wait for.

Every worker process with a transcriber runs one. A sound belongs to one worker at a time, by a
lease that it renews; what a dead or paused one leaves is due again when its lease ends. Turns with
sounds use the same transcriber.
"""

import threading

import structlog

from turnmill.schemas.errors import DatabaseUnavailable, NotFound, PermanentError, TransientError
from turnmill.schemas.store.files.transcriptions import MAX_ATTEMPTS, Task, claim, due_in, end
from turnmill.workers.media.base import Hints, Interrupted, Transcriber
from turnmill.workers.media.media import Media
from turnmill.workers.upkeep.keeping import kept

log = structlog.get_logger()

#: How often a worker looks for sounds while there are none, seconds.
POLL_S = 0.5
#: Before another attempt at a sound, seconds.
RETRY_S = 2.0


class Stenographer:
    """The thread that transcribes."""

    def __init__(self, media: Media, transcriber: Transcriber, lease_s: float) -> None:
        self._database = media.database
        self._files = media.files
        self._language = media.settings.language
        self._transcriber = transcriber
        self._lease_s = lease_s
        #: Set while nobody wants the sound that is being transcribed.
        self._abort = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stenographer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Begin no further sound. The one in work is given back at its next segment."""
        self._stopping.set()
        self._abort.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def transcribe_next(self) -> bool:
        """Transcribe the sound that has waited longest; False: none does.

        Raises:
            DatabaseUnavailable: the sound is due again when its lease ends.
        """
        task = claim(self._database, self._lease_s)
        if task is None:
            return False
        if task.attempt > MAX_ATTEMPTS:
            self._fail(task, "no_result", f"Transcribing ended {MAX_ATTEMPTS} times without text.")
            return True
        if not self._stopping.is_set():
            self._abort.clear()
        try:
            self._transcribe(task)
        except Interrupted:
            # The call has ended, or this process stops: then others may begin at once.
            due_in(self._database, task, 0.0)
        except NotFound:
            log.info("transcription.unwanted", file_id=task.file_id.hex)
        except PermanentError as error:
            self._fail(task, error.code, error.public_message)
        except DatabaseUnavailable:
            raise
        except TransientError as error:
            self._again(task, error)
        return True

    def _transcribe(self, task: Task) -> None:
        lease_s = self._lease_s
        with kept(lambda: due_in(self._database, task, lease_s), lease_s, self._abort.set):
            sound = self._files.read(self._files.find(task.tenant_id, task.file_id))
            hints = Hints(task.language or self._language, task.prompt)
            heard = self._transcriber.transcribe(sound, hints, self._abort)
        is_mine = end(self._database, task, heard.model_dump(mode="json", exclude_none=True))
        log.info("transcription.ended" if is_mine else "transcription.fenced", **_of(task))

    def _again(self, task: Task, error: TransientError) -> None:
        log.warning("transcription.delayed", error=error.message, **_of(task))
        if task.attempt < MAX_ATTEMPTS:
            due_in(self._database, task, RETRY_S)
        else:
            self._fail(task, error.code, error.public_message)

    def _fail(self, task: Task, code: str, message: str) -> None:
        if end(self._database, task, code=code, message=message):
            log.warning("transcription.failed", code=code, **_of(task))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.transcribe_next():
                    continue
            except DatabaseUnavailable as error:
                log.warning("stenographer.stalled", error=error.message)
            except Exception:
                # One sound must not end the transcribing of all others.
                log.exception("stenographer.failed")
            self._stopping.wait(POLL_S)


def _of(task: Task) -> dict[str, object]:
    return {"file_id": task.file_id.hex, "attempt": task.attempt}
