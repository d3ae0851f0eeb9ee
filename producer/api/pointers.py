"""Where a client that called an address Turnmill does not have should turn instead."""

_CHAT = "/v1/chat/completions"

#: By the first part of the path, without a leading `/v1`.
_POINTERS = {
    "": "The description of all addresses is at /docs.",
    "chat": f"Turnmill answers POST {_CHAT}.",
    "models": "Turnmill answers GET /v1/models.",
    "turns": "Turnmill answers GET /turns/{turn_id}.",
    "conversations": "Turnmill answers GET /conversations/{conversation_id}; a call continues a "
    "conversation with the header X-Turnmill-Conversation.",
    "channels": "Platforms send their events to POST /channels/{name}.",
    "responses": f"Turnmill does not have the Responses API yet. Use POST {_CHAT}.",
    "completions": f"Turnmill does not complete bare prompts. Use POST {_CHAT}.",
    "messages": f"Turnmill does not speak Anthropic's API. Use OpenAI's: POST {_CHAT}.",
    "api": f"Turnmill does not speak Ollama's API. Use OpenAI's: POST {_CHAT}.",
    "files": "Turnmill answers POST and GET /v1/files, and GET and DELETE /v1/files/{file_id}.",
    "vector_stores": "Turnmill answers POST and GET /v1/vector_stores, and what is below "
    "/v1/vector_stores/{vector_store_id}: files, file_batches and search.",
    "batches": "Turnmill takes batches from the command line: turnmill batch run FILE.",
    "audio": "Turnmill answers POST /v1/audio/transcriptions.",
    **dict.fromkeys(
        (
            "assistants",
            "embeddings",
            "fine_tuning",
            "images",
            "moderations",
            "realtime",
            "threads",
            "uploads",
        ),
        "Turnmill does not have this part of OpenAI's API yet.",
    ),
}


def pointer(path: str) -> str:
    """Return a sentence that leads on from an unknown path, or an empty string."""
    parts = path.strip("/").split("/")
    bare = parts[next((i for i, part in enumerate(parts) if part != "v1"), len(parts)) :]
    sentence = _POINTERS.get(bare[0] if bare else "", "")
    if bare and bare[0] in ("chat", "models") and len(parts) - len(bare) != 1:
        sentence += " OpenAI's clients add the path to their base URL, which ends in one /v1."
    return sentence
