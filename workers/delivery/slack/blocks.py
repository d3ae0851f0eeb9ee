"""Messages as Slack's API takes them: https://docs.slack.dev/reference/block-kit"""

from typing import Any
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.ids import Prefix, show_id
from turnmill.workers.delivery.base import Job

Blocks = list[dict[str, object]]

#: Of a section's text; a message without blocks could be longer.
MAX_SECTION = 3000

#: The name under which our messages are found again.
EVENT_TYPE = "turnmill_delivery"


def metadata(delivery_id: UUID, part: int) -> dict[str, object]:
    """Say which part of which delivery a message is."""
    return {"event_type": EVENT_TYPE, "event_payload": {"id": delivery_id.hex, "part": part}}


def part_of(message: dict[str, Any], delivery_id: UUID) -> int | None:
    """Which part of a delivery a message is, if any."""
    found = message.get("metadata") or {}
    payload = found.get("event_payload") or {}
    if found.get("event_type") != EVENT_TYPE or payload.get("id") != delivery_id.hex:
        return None
    return int(payload["part"])


def section(mrkdwn: str) -> dict[str, object]:
    return {"type": "section", "expand": True, "text": {"type": "mrkdwn", "text": mrkdwn}}


def buttons(job: Job) -> Blocks:
    """What stands under a reply (whether it was good, and a way to a person), or under a notice of
    a conversation that a person answers: a way back to the bot."""
    if job.kind is DeliveryKind.NOTICE and job.is_handed_off:
        conversation = f"turnmill:{show_id(Prefix.CONVERSATION, job.conversation_id)}"
        return [_action(f"resume:{conversation}", "turnmill_resume", "Give back to the bot")]
    if not job.is_reply or job.turn_id is None:
        return []
    turn = f"turnmill:{show_id(Prefix.TURN, job.turn_id)}"
    feedback = {
        "type": "feedback_buttons",
        "action_id": "turnmill_feedback",
        "positive_button": {"text": _plain("Good reply"), "value": "good"},
        "negative_button": {"text": _plain("Bad reply"), "value": "bad"},
    }
    return [
        {"type": "context_actions", "block_id": turn, "elements": [feedback]},
        _action(f"hand_off:{turn}", "turnmill_hand_off", "Talk to a person"),
    ]


def _action(block_id: str, action_id: str, text: str) -> dict[str, object]:
    button = {"type": "button", "action_id": action_id, "text": _plain(text)}
    return {"type": "actions", "block_id": block_id, "elements": [button]}


def _plain(text: str) -> dict[str, str]:
    return {"type": "plain_text", "text": text}
