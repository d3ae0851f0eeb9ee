"""Parameters of paths and queries that are ids."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import PlainValidator, WithJsonSchema

from turnmill.schemas.ids import Prefix, parse_id


def id_schema(prefix: Prefix) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{32}}$"}


#: `turn_…`, `conv_…` and `dlv_…`; anything else is 400.
TurnId = Annotated[
    UUID,
    PlainValidator(lambda text: parse_id(Prefix.TURN, text)),
    WithJsonSchema(id_schema(Prefix.TURN)),
]
ConversationId = Annotated[
    UUID,
    PlainValidator(lambda text: parse_id(Prefix.CONVERSATION, text)),
    WithJsonSchema(id_schema(Prefix.CONVERSATION)),
]
DeliveryId = Annotated[
    UUID,
    PlainValidator(lambda text: parse_id(Prefix.DELIVERY, text)),
    WithJsonSchema(id_schema(Prefix.DELIVERY)),
]
