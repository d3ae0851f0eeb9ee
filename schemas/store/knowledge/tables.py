"""The tables of knowledge.

Invariants:

* a document's passages are those of its version: both change in one transaction;
* vectors of different spaces are never compared: all of a space are of one embedder and version;
* `collection_terms.df` is the number of the collection's passages that have the lexeme, and
  `collections.passage_count` and `total_length` are those of its passages.
"""

from sqlalchemy import (
    DDL,
    REAL,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from turnmill.schemas.store.tables import metadata, time_column

collections = Table(
    "collections",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("passage_count", Integer, nullable=False, server_default=text("0")),
    #: Lexemes of all passages together.
    Column("total_length", BigInteger, nullable=False, server_default=text("0")),
    #: How it tells that it does not know: `Gate`. Null: not calibrated.
    Column("gate", JSONB),
    #: What its owner says of it.
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    #: The space that questions are searched in; without one they are searched for by words alone.
    Column("space_id", Uuid),
    time_column("created_at", default_now=True),
    UniqueConstraint("tenant_id", "name"),
)

documents = Table(
    "documents",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    #: Where it came from: a path below the folder that was synchronized, or a file's name.
    Column("uri", Text, nullable=False),
    #: What was synchronized: what is gone from there is deleted, and nothing else.
    Column("origin", Text, nullable=False),
    Column("title", Text, nullable=False),
    #: Where people find it: an address of http or https.
    Column("url", Text),
    #: Of the content that is wanted; its passages may still be those of the one before.
    Column("digest", LargeBinary, nullable=False),
    #: How often its passages were replaced; 0: it has had none.
    Column("version", Integer, nullable=False, server_default=text("1")),
    #: `DocumentState`. The previous release writes documents that are ready.
    Column("state", Text, nullable=False, server_default=text("'ready'")),
    #: Counted up by each change of what is wanted, and by each claim: the fencing token.
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    #: Since it was queued.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    #: When a worker may take it; while it is indexed, the end of the lease.
    time_column("due_at"),
    Column("error_code", Text),
    Column("error_message", Text),
    #: The file that it is made of, if its content did not come with it.
    Column("file_id", Uuid),
    #: Whether file batches alone have added it.
    Column("is_of_batches", Boolean, nullable=False, server_default=text("false")),
    #: What its owner says of it.
    Column("attributes", JSONB, nullable=False, server_default=text("'{}'")),
    time_column("created_at", default_now=True),
    time_column("updated_at", default_now=True),
    UniqueConstraint("collection_id", "origin", "uri"),
    Index("ix_documents_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    Index("ix_documents_file_id", "file_id", postgresql_where=text("file_id IS NOT NULL")),
)

#: What waits to be indexed, or failed. It is deleted with the document, or once that is ready.
document_contents = Table(
    "document_contents",
    metadata,
    Column("document_id", ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

#: Documents that the API added together.
file_batches = Table(
    "file_batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    #: Their ids; those of deleted ones stay.
    Column("documents", ARRAY(Uuid), nullable=False),
    #: Those that were taken out before anybody had read them.
    Column("cancelled", ARRAY(Uuid), nullable=False, server_default=text("'{}'")),
    Index("ix_file_batches_collection_id", "collection_id"),
)

#: Its body is parsed when it is made: which schemas a session searches does not matter to it. It is
#: said to cost much, because it reads what is stored outside rows: no plan should call it.
_POSTINGS = """
CREATE OR REPLACE FUNCTION passage_postings(collection_id uuid, terms tsvector) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000
RETURN (
    SELECT array_to_tsvector(array_agg(
        to_hex(hashtextextended(lexeme, uuid_hash_extended(collection_id, n)))))
    FROM unnest(terms)
    CROSS JOIN generate_series(1, least(3, coalesce(array_length(positions, 1), 1))) AS n
)
"""

passages = Table(
    "passages",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("document_id", ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    #: From 0, within its document.
    Column("position", Integer, nullable=False),
    #: The headings above it.
    Column("heading", Text, nullable=False),
    Column("content", Text, nullable=False),
    #: Instead of its document's, where it has its own.
    Column("url", Text),
    Column("terms", TSVECTOR, nullable=False),
    #: Its lexemes.
    Column("length", Integer, nullable=False),
    Index("ix_passages_collection_id", "collection_id"),
    Index("ix_passages_document_id", "document_id"),
    #: Of the previous release.
    Index("ix_passages_terms", "terms", postgresql_using="gin"),
    #: Which passages of a collection have a lexeme once, twice, three times and more: each under a
    #: hash of collection, lexeme and number.
    Index("ix_passages_postings", text("passage_postings(collection_id, terms)"),
          postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
)  # fmt: skip

event.listen(passages, "before_create", DDL(_POSTINGS))  # type: ignore[no-untyped-call]

collection_terms = Table(
    "collection_terms",
    metadata,
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("lexeme", Text, primary_key=True),
    Column("df", Integer, nullable=False),
)

#: Vectors of one collection that may be compared with each other. A new embedder fills another one.
spaces = Table(
    "spaces",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("embedder", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("dims", Integer, nullable=False),
    #: What its embedder puts before questions and passages.
    Column("question_prefix", Text, nullable=False),
    Column("passage_prefix", Text, nullable=False),
    #: Counted up with each batch of vectors, for those who keep a copy in memory.
    Column("changes", BigInteger, nullable=False, server_default=text("0")),
    #: When another one became its collection's.
    time_column("superseded_at", nullable=True),
    time_column("created_at", default_now=True),
    UniqueConstraint(
        "collection_id", "embedder", "version", "dims", "question_prefix", "passage_prefix"
    ),
)

passage_vectors = Table(
    "passage_vectors",
    metadata,
    Column("space_id", ForeignKey("spaces.id", ondelete="CASCADE"), primary_key=True),
    Column("passage_id", ForeignKey("passages.id", ondelete="CASCADE"), primary_key=True),
    #: Of length 1. `halfvec` where the server has pgvector (`spaces.adopt_pgvector`).
    Column("v", ARRAY(REAL), nullable=False),
    Index("ix_passage_vectors_passage_id", "passage_id"),
)

#: What a turn was shown of its bot's collection. Its first attempt decides, so that a later one
#: continues the same answer, whatever became of the documents.
turn_sources = Table(
    "turn_sources",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    #: Passages in the order of the prompt, as `Source` has them; none: nothing was close enough.
    Column("sources", JSONB, nullable=False),
    #: `Verdict`, and the probability that the gate gave. Null in rows of releases without gates;
    #: the probability also where the collection is not calibrated.
    Column("verdict", Text),
    Column("probability", REAL),
    #: How many of them the prompt had room for: the first ones. Null: none was built yet.
    Column("shown", Integer),
    #: The number that the prompt gives to the first; null: the reply was not asked to cite them.
    Column("first_number", Integer),
    time_column("created_at", default_now=True),
)

#: Questions that a collection did not answer. The question is a user's words, and no other column
#: has any.
knowledge_gaps = Table(
    "knowledge_gaps",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("collection_id", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("turn_id", Uuid, nullable=False, unique=True),
    Column("question", Text, nullable=False),
    #: `Verdict`, `rated_down` or `taken_over`.
    Column("verdict", Text, nullable=False),
    time_column("created_at", default_now=True),
    #: Answered or dismissed.
    time_column("closed_at"),
    #: The answer.
    Column("document_id", ForeignKey("documents.id", ondelete="SET NULL")),
    Index("ix_knowledge_gaps_open", "tenant_id", "collection_id", "id",
          postgresql_where=text("closed_at IS NULL")),
    Index("ix_knowledge_gaps_collection_id", "collection_id"),
    Index("ix_knowledge_gaps_document_id", "document_id"),
)  # fmt: skip
