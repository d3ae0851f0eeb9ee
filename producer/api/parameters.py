"""Parameters of paths and queries that are ids."""

from typing import Annotated
from uuid import UUID

from pydantic import PlainValidator, WithJsonSchema
from pydantic.config import JsonDict

from turnmill.schemas.ids import Prefix, parse_id


def id_schema(*prefixes: Prefix) -> JsonDict:
    prefix = f"({'|'.join(prefixes)})"
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{32}}$"}


#: `turn_…`, `conv_…`, `dlv_…`, `vs_…` and `vsfb_…`; anything else is 400.
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
VectorStoreId = Annotated[
    UUID,
    PlainValidator(lambda text: parse_id(Prefix.VECTOR_STORE, text)),
    WithJsonSchema(id_schema(Prefix.VECTOR_STORE)),
]
FileBatchId = Annotated[
    UUID,
    PlainValidator(lambda text: parse_id(Prefix.FILE_BATCH, text)),
    WithJsonSchema(id_schema(Prefix.FILE_BATCH)),
]
#: As it is written: files of vector stores have ids of either kind.
FileId = Annotated[str, WithJsonSchema(id_schema(Prefix.FILE))]
StoreFileId = Annotated[str, WithJsonSchema(id_schema(Prefix.FILE, Prefix.DOCUMENT))]
