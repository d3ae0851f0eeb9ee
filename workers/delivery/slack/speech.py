"""Spoken replies in Slack: files beside the text, which Slack plays."""

from turnmill.schemas.errors import DeliveryRefused
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.slack.calls import Calls


def say(calls: Calls, job: Job, sound: bytes) -> str:
    """Share a sound below a reply; see `Speaks.say`."""
    if "response_url" in job.target:
        raise DeliveryRefused("A slash command is answered by text alone.", reason="no_files")
    return calls.upload("reply.ogg", sound, job.target["channel"], job.target.get("thread_ts"))
