"""Where what a user said can stand, and what becomes of it when the user is forgotten.

Each column of each table that can hold text is declared here: in `HELD`, or in `FREE` because no
user's words reach it. `tests/unit/schemas/memory/test_words.py` fails for one that is not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Of(StrEnum):
    """What the rows belong to: an erasure knows the ids of each."""

    #: Turns that the user asked, or of which nobody knows who did; and copies of turns that
    #: measure bots.
    SAID = "said"
    #: These, and all later turns of their conversations: a reply may repeat what was said before.
    ANSWERED = "answered"
    CONVERSATION = "conversations"
    #: Conversations in which nobody else wrote.
    OWN_CONVERSATION = "own_conversations"
    #: Items of studies that show such turns.
    ITEM = "items"
    FILE = "files"
    USER = "users"


@dataclass(frozen=True, slots=True)
class Held:
    """Columns that hold a user's words, and how they lose them."""

    of: Of
    #: The column with the ids.
    by: str
    #: What the columns have afterwards, as SQL. Without any, the rows are deleted.
    then: Mapping[str, str] = field(default_factory=dict)
    #: Another condition on the rows.
    where: str = "true"

    def statement(self, table: str) -> str:
        """Build the statement, whose parameters are the ids by the name of what they are of."""
        which = f"{self.by} = ANY(%({self.of})s) AND {self.where}"
        if not self.then:
            return f"DELETE FROM {table} WHERE {which}"
        setting = ", ".join(f"{column} = {value}" for column, value in self.then.items())
        return f"UPDATE {table} SET {setting} WHERE {which}"


_SENT = {
    "target": "'{}'",
    "progress": "'{}'",
    "content": "CASE WHEN content IS NOT NULL THEN '' END",
    "error_message": "NULL",
}

#: In the order in which they are emptied. Ids, states, times, counts and usage stay.
HELD: dict[str, tuple[Held, ...]] = {
    "chunks": (Held(Of.ANSWERED, "turn_id"),),
    "attempts": (Held(Of.ANSWERED, "turn_id", {"error": "NULL"}),),
    "replies": (
        Held(Of.ANSWERED, "turn_id", {"content": "''", "tool_calls": "NULL", "logprobs": "NULL"}),
    ),
    "turn_sources": (Held(Of.SAID, "turn_id"),),
    "turn_memory": (Held(Of.SAID, "turn_id"),),
    "turn_readings": (Held(Of.SAID, "turn_id"),),
    "knowledge_gaps": (Held(Of.SAID, "turn_id"),),
    "summaries": (Held(Of.CONVERSATION, "conversation_id"),),
    "ratings": (
        Held(Of.ANSWERED, "turn_id", {"comment": "NULL"}),
        # Unique within its turn.
        Held(Of.SAID, "turn_id", {"author": "id::text"}),
    ),
    "deliveries": (
        Held(Of.SAID, "turn_id", _SENT),
        Held(
            Of.CONVERSATION, "conversation_id", _SENT, "turn_id IS NULL AND settled_at IS NOT NULL"
        ),
    ),
    "study_items": (
        Held(
            Of.ITEM,
            "id",
            {
                "prompt": "'[]'",
                "left_text": "''",
                "right_text": "CASE WHEN right_text IS NOT NULL THEN '' END",
                "source": "jsonb_build_object('turn_id', source -> 'turn_id')",
                # Nobody is shown it any more.
                "wanted": "0",
            },
        ),
    ),
    "study_assignments": (Held(Of.ITEM, "item_id", {"comment": "NULL"}),),
    "turns": (
        Held(
            Of.SAID,
            "id",
            {
                "input": "'[]'",
                "params": "'{}'",
                # The key of a batch's row has the row's id.
                "idempotency_key": "CASE WHEN batch_id IS NOT NULL THEN idempotency_key END",
                "fingerprint": "NULL",
                "author": "NULL",
                "user_key": "NULL",
            },
        ),
        # Never null where it was not: the turn of another user stays parked, and is listed.
        Held(
            Of.ANSWERED,
            "id",
            {"error_message": "CASE WHEN error_message IS NOT NULL THEN 'Erased.' END"},
        ),
    ),
    "channel_threads": (Held(Of.OWN_CONVERSATION, "conversation_id"),),
    "conversations": (
        Held(
            Of.CONVERSATION,
            "id",
            {"handed_off_because": "CASE WHEN handed_off_at IS NOT NULL THEN 'Erased.' END"},
        ),
    ),
    "files": (Held(Of.FILE, "id"),),
    # With their files, which no turn refers to: minutes later.
    "transcriptions": (Held(Of.FILE, "file_id"),),
    "facts": (Held(Of.USER, "user_id"),),
    "users": (Held(Of.USER, "id"),),
}

#: Columns that no user's words reach: names, states and codes of ours; what owners and operators
#: write; ids of platforms; documents of owners, whose passages are theirs.
FREE: dict[str, frozenset[str]] = {
    table: frozenset(columns.split())
    for table, columns in {
        "api_keys": "name hint digest scopes",
        "attempts": "lane outcome",
        "batch_moves": "old_state new_state error_code",
        "batches": "bot name fingerprint purpose",
        "bots": "name model instructions params policies",
        "channel_events": "channel event_id",
        "collection_terms": "lexeme",
        "collections": "name gate metadata",
        "conversations": "policies",
        "deliveries": "channel kind state error_code",
        "deployment": "id",
        "document_contents": "content",
        "documents": "uri origin title digest url state error_code error_message attributes",
        "erased_files": "asked_by",
        # The key only until the erasure is done.
        "erasures": "key_hash key",
        "file_batches": "documents cancelled",
        "lane_pauses": "lane model paused_by reason",
        "outbox": "model lane",
        "passage_vectors": "v",
        "passages": "heading content terms url",
        "ratings": "source",
        "replies": "finish_reason",
        "spaces": "embedder version question_prefix passage_prefix",
        "studies": "name kind dimensions",
        "study_raters": "name digest",
        "study_ratings": "dimension",
        "tenants": "name",
        "turns": "model lane state error_code",
        "undeleted_files": "reason remedy",
        "worker_liveness": "host model engine lanes version capabilities unavailable_because "
        "own_lanes drain_asked_by ended_lately",
    }.items()
}


def statements() -> Iterator[tuple[str, str]]:
    """Yield each table with a statement that empties it. Files have bytes too (`orphans.py`)."""
    for table, held in HELD.items():
        for each in held:
            if each.of not in (Of.FILE, Of.USER):
                yield table, each.statement(table)
