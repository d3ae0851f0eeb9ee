"""What a client is told that calls an address Turnmill does not have."""

import pytest

from turnmill.producer.api.pointers import pointer


@pytest.mark.parametrize(
    ("path", "lead"),
    [
        ("/chat/completions", "ends in one /v1"),
        ("/v1/v1/chat/completions", "ends in one /v1"),
        ("/models", "ends in one /v1"),
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/responses", "POST /v1/chat/completions"),
        ("/v1/completions", "POST /v1/chat/completions"),
        ("/v1/messages", "POST /v1/chat/completions"),
        ("/api/chat", "POST /v1/chat/completions"),
        ("/v1/batches", "turnmill batch run"),
        ("/v1/embeddings", "yet"),
        ("/v1/turns/turn_1", "GET /turns"),
        ("/v1", "/docs"),
        ("/", "/docs"),
    ],
)
def test_an_unknown_address_leads_on(path: str, lead: str) -> None:
    assert lead in pointer(path)


@pytest.mark.parametrize("path", ["/v1/nothing", "//", "/v1/chat/completions/extra", "x" * 1000])
def test_any_path_has_a_pointer_or_none(path: str) -> None:
    assert "one /v1" not in pointer(path)
