"""The index of words knows what processes of the previous release have written."""

from contextlib import closing
from pathlib import Path

from turnmill.infra.migrations import upgrade
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.store.knowledge.indexing import Wanted, write
from turnmill.schemas.store.knowledge.lexemes import passage_terms
from turnmill.schemas.store.knowledge.words import rank_words


def test_passages_that_were_written_before_the_index_and_beside_it_are_found(
    empty_database_url: str, tmp_path: Path
) -> None:
    upgrade(empty_database_url, "0037")
    settings = load_settings(data=tmp_path, database={"url": empty_database_url})
    with closing(Database(settings.database)) as database:
        tenant_id, collection_id = ensure_defaults(database, settings), new_id()

        def write_kettle(number: int) -> None:
            """As a process of the previous release does, whose statement is the same."""
            content = f"A kettle {number}."
            terms, length = passage_terms("", "", content)
            passage = {"heading": "", "content": content, "terms": terms, "length": length}
            wanted = Wanted(collection_id, "made", f"{number}.md", b"")
            with database.cursor() as cursor:
                write(cursor, wanted, "", [passage])

        with database.cursor() as cursor:
            cursor.execute(
                "INSERT INTO collections (id, tenant_id, name) VALUES (%s, %s, 'shop')",
                (collection_id, tenant_id),
            )
        write_kettle(1)
        upgrade(empty_database_url)
        write_kettle(2)
        assert len(rank_words(database, tenant_id, "shop", "kettle", 5)) == 2
        assert len(rank_words(database, tenant_id, "shop", "kettle 1", 1)) == 1
