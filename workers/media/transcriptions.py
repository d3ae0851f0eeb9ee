"""The stenographer: transcribes the sounds that calls of the API wait for.

Every worker process with a transcriber runs one. A sound belongs to one worker at a time, by a
lease that it renews; what a dead or paused one leaves is due again when its lease ends. Turns with
sounds use the same transcriber. Tenants take turns: one with many sounds delays nobody else's.
"""

import threading
from contextlib import suppress
from functools import partial
from uuid import UUID

import structlog

from turnmill.schemas.errors import DatabaseUnavailable, NotFound, PermanentError, TransientError
from turnmill.schemas.store.files.transcriptions import (
    MAX_ATTEMPTS,
    MAX_FAILURES,
    Task,
    claim,
    due,
    end,
    hand_back,
    renew,
)
from turnmill.workers.media.base import Hints, Transcriber, TranscriberFailed, TranscriberRefuses
from turnmill.workers.media.media import Media
from turnmill.workers.turn.abort import Interrupted
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.isolated import Resting, first_isolated
from turnmill.workers.upkeep.keeping import kept

log = structlog.get_logger()

#: How often a worker looks for sounds while there are none, seconds.
POLL_S = 0.5
#: Before another attempt at a sound, seconds; doubled each time, until its call has waited as long
#: as it may.
RETRY_S = 2.0
MAX_RETRY_S = 30.0
#: Tenants whose turn is remembered, at most.
MAX_TENANTS = 1000

_DIED = (
    f"{MAX_ATTEMPTS} workers died, or lost the database, while they transcribed the sound. Send a "
    "shorter one, or tell whoever runs this service to look into the workers' logs."
)
_FAILED = (
    f"The transcriber's server failed {MAX_FAILURES} times at the sound. Send it in another format "
    "or a shorter one, or tell whoever runs this service: the worker's log has the errors as "
    "transcription.delayed."
)
_REFUSED = (
    "The transcriber's server refuses this service. Tell whoever runs this service: the worker's "
    "log has the status and the remedy as transcription.refused."
)
_BROKEN = (
    "The worker failed at this sound. Send it in another format, or tell whoever runs this "
    "service: the worker's log has the error as transcription.broken."
)


class Stenographer:
    """The thread that transcribes."""

    def __init__(
        self,
        media: Media,
        transcriber: Transcriber,
        lease_s: float,
        draining: threading.Event,
        clock: DatabaseClock | None = None,
    ) -> None:
        """`draining`: set once the process begins no further work. `clock`: what the process knows
        of the database's.
        """
        self._database = media.database
        self._files = media.files
        self._language = media.settings.language
        self._transcriber = transcriber
        self._lease_s = lease_s
        self._draining = draining
        self._clock = clock or DatabaseClock()
        #: The sound in work.
        self._task: Task | None = None
        #: Tenants in the order in which their sounds were begun, the last one last.
        self._served: list[UUID] = []
        self._resting = Resting()
        #: Set while nobody wants the sound that is being transcribed.
        self._abort = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stenographer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Begin no further sound, and hand back the one in work: another worker begins at once."""
        self._stopping.set()
        self._abort.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)
        if (task := self._task) is not None:
            with suppress(DatabaseUnavailable):
                hand_back(self._database, task)

    def transcribe_next(self) -> bool:
        """Transcribe the sound that has waited longest, of the tenant that is next; False: none
        waits.

        Raises:
            DatabaseUnavailable: the sound is due again when its lease ends.
        """
        task = self._claim()
        if task is None:
            return False
        others = [each for each in self._served if each != task.tenant_id]
        self._served = [*others, task.tenant_id][-MAX_TENANTS:]
        if task.tries > MAX_ATTEMPTS:
            self._fail(task, "no_result", _DIED)
            return True
        if not self._stopping.is_set():
            self._abort.clear()
        self._task = task
        try:
            self._transcribe(task)
        except Interrupted:
            # The call has ended, or this process stops: then others may begin at once.
            hand_back(self._database, task)
        except NotFound:
            log.info("transcription.unwanted", file_id=task.file_id.hex)
        except PermanentError as error:
            # What turns call their messages, a call of the API calls its file.
            param = None if error.param == "messages" else error.param
            self._fail(task, error.code, error.public_message, param)
        except DatabaseUnavailable:
            raise
        except TranscriberRefuses as error:
            log.error("transcription.refused", error=error.message, **_of(task))
            self._fail(task, "no_result", _REFUSED)
        except TransientError as error:
            self._again(task, error)
        except Exception as error:
            # Its words may be the user's.
            log.error("transcription.broken", error=type(error).__name__, **_of(task))
            self._fail(task, "internal_error", _BROKEN)
        finally:
            self._task = None
        return True

    def _claim(self) -> Task | None:
        latest_s = self._clock.judging_s(self._lease_s)
        first = due(self._database, self._served, latest_s, self._resting.ids)
        take = partial(claim, self._database, self._lease_s, self._served, latest_s)
        return first_isolated(take, first, "transcription", self._resting)

    def _transcribe(self, task: Task) -> None:
        lease_s = self._lease_s
        with kept(lambda: renew(self._database, task, lease_s), lease_s, self._abort.set):
            sound = self._files.read(self._files.find(task.tenant_id, task.file_id))
            hints = Hints(task.language or self._language, task.prompt)
            heard = self._transcriber.transcribe(sound, hints, self._abort)
        is_mine = end(self._database, task, heard.model_dump(mode="json", exclude_none=True))
        log.info("transcription.ended" if is_mine else "transcription.fenced", **_of(task))

    def _again(self, task: Task, error: TransientError) -> None:
        log.warning("transcription.delayed", error=error.message, **_of(task))
        has_failed = isinstance(error, TranscriberFailed)
        if has_failed and task.failures + 1 >= MAX_FAILURES:
            self._fail(task, "no_result", _FAILED)
            return
        # Every other number is a claim's.
        wait_s = min(RETRY_S * 2 ** min(task.attempt // 2, 10), MAX_RETRY_S)
        code, message = error.code, error.public_message
        hand_back(self._database, task, wait_s, code=code, message=message, has_failed=has_failed)

    def _fail(self, task: Task, code: str, message: str, param: str | None = None) -> None:
        if end(self._database, task, code=code, message=message, param=param):
            log.warning("transcription.failed", code=code, **_of(task))

    def _run(self) -> None:
        while not (self._stopping.is_set() or self._draining.is_set()):
            try:
                if self.transcribe_next():
                    continue
            except DatabaseUnavailable as error:
                log.warning("stenographer.stalled", error=error.message)
            except Exception as error:
                # One sound must not end the transcribing of all others.
                log.error("stenographer.failed", error=type(error).__name__)
            self._stopping.wait(POLL_S)


def _of(task: Task) -> dict[str, object]:
    return {"file_id": task.file_id.hex, "attempt": task.attempt}
