"""What accept does before its transaction."""

from contextlib import AbstractContextManager
from typing import cast

import pytest

from turnmill.producer.accept import accept
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.turns import GenerationParams, Message, TurnRequest


class _NoTransaction:
    def cursor(self) -> AbstractContextManager[Cursor]:
        raise AssertionError("a transaction began")


def test_a_schema_is_read_before_the_transaction_begins() -> None:
    wrong = ResponseFormat(type="json_schema", schema_text='{"not": {}}')
    request = TurnRequest(
        tenant_id=new_id(),
        bot="support",
        messages=(Message(role="user", content="Hello"),),
        params=GenerationParams(response_format=wrong),
    )
    with pytest.raises(InvalidInput):
        accept(cast(Database, _NoTransaction()), request)
