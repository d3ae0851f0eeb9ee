"""Parameters of paths and queries that are ids."""

from typing import Annotated
from uuid import UUID

from pydantic import PlainValidator, WithJsonSchema
from pydantic.config import JsonDict

from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, parse_id


def id_schema(*prefixes: Prefix) -> JsonDict:
    prefix = f"({'|'.join(prefixes)})"
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{32}}$"}


def wanted_id(text: str, *prefixes: Prefix, param: str) -> UUID:
    """The id of an object of OpenAI's API, with one of these prefixes.

    Raises `NotFound` for any other text: clients catch that where they have the id of a server that
    they used before, and make the object anew.
    """
    fitting = [prefix for prefix in prefixes if text.startswith(f"{prefix}_")]
    try:
        return parse_id((fitting or list(prefixes))[0], text)
    except InvalidInput as error:
        raise NotFound(error.message, param=param) from None


#: `turn_…`, `conv_…` and `dlv_…`: anything else is 400. `vs_…` and `vsfb_…`: 404.
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
    PlainValidator(lambda text: wanted_id(text, Prefix.VECTOR_STORE, param="vector_store_id")),
    WithJsonSchema(id_schema(Prefix.VECTOR_STORE)),
]
FileBatchId = Annotated[
    UUID,
    PlainValidator(lambda text: wanted_id(text, Prefix.FILE_BATCH, param="batch_id")),
    WithJsonSchema(id_schema(Prefix.FILE_BATCH)),
]
#: As it is written: files of vector stores have ids of either kind.
FileId = Annotated[str, WithJsonSchema(id_schema(Prefix.FILE))]
StoreFileId = Annotated[str, WithJsonSchema(id_schema(Prefix.FILE, Prefix.DOCUMENT))]
