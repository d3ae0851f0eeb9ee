"""A collection holds what its sources hold, and a search finds it."""

from pathlib import Path

import pytest

from tests.integration.knowledge.conftest import Library
from turnmill.producer.knowledge.lookup import (
    delete_collection,
    find_collection,
    list_collections,
    list_documents,
)
from turnmill.producer.knowledge.sync import Change, delete_documents
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.errors import InvalidInput, NotFound

RETURNS = """# Returns

## Kettles

A kettle that leaks may be sent back within 30 days. We pay the postage.

## Knives

Knives cannot be returned once their sleeve is open.
"""
SHIPPING = "Parcels leave on weekdays.\n\nA parcel to an island takes five days."
CHINESE = "# 发票\n\n电子发票在订单完成后三天内发送到您的邮箱。\n\n# 优惠券\n\n优惠券不能叠加使用。"
PAGE = """<html><head><title>Opening hours</title><style>p {}</style></head><body>
<nav>Home Shop</nav><h1>Opening hours</h1><h2>Holidays</h2><p>Closed on <b>New Year</b>.</p>
<script>alert("Closed")</script></body></html>"""
FAQ = "question,answer\nDo you sell gift cards?,Yes; from 10 euros.\nWhere are you?,In Bremen.\n"


@pytest.fixture
def shop(library: Library) -> Library:
    library.write("returns.md", RETURNS)
    library.write("more/shipping.txt", SHIPPING)
    library.write("zh.md", CHINESE)
    library.write("hours.html", PAGE)
    library.write("faq.csv", FAQ)
    library.write(".hidden/secret.md", "secret")
    library.write("picture.png", "no text")
    library.sync()
    return library


@pytest.mark.parametrize(
    ("question", "uri", "said"),
    [
        ("My kettle leaks, can I return it?", "returns.md", "30 days"),
        ("Can I return KNIVES?", "returns.md", "sleeve"),
        ("How long do parcels to islands take?", "more/shipping.txt", "five days"),
        ("怎么申请电子发票？", "zh.md", "三天内"),
        ("优惠券可以叠加吗", "zh.md", "不能叠加"),
        ("Are you open on New Year?", "hours.html", "Closed on New Year."),
        ("gift cards", "faq.csv", "from 10 euros"),
    ],
)
def test_a_question_finds_its_passage_first(
    shop: Library, question: str, uri: str, said: str
) -> None:
    first = shop.search(question)[0]
    assert first.uri == uri
    assert said in first.content
    assert 0 < first.coverage <= 1


def test_how_much_of_a_question_a_passage_has(shop: Library) -> None:
    whole, half = (shop.search(text)[0].coverage for text in ("kettle leaks", "kettle zeppelin"))
    assert 0.2 < half < whole
    # A question in Chinese has many pairs of characters that no answer has.
    assert shop.search("电子发票什么时候发送？")[0].coverage > 0.2
    assert not [each for each in shop.search("Who won the cup in 1954?") if each.coverage > 0.2]
    story = " ".join(f"so I went there{n} and again{n}" for n in range(100))
    assert (
        shop.search(f"{story}. My kettle leaks: return, postage, days, sent back?")[0].coverage
        > 0.3
    )


def test_headings_and_titles_tell_where_a_passage_stands(shop: Library) -> None:
    first = shop.search("leaking kettle within days")[0]
    assert (first.title, first.heading) == ("Returns", "Kettles")
    assert (
        first.content == "A kettle that leaks may be sent back within 30 days. We pay the postage."
    )
    assert shop.search("gift cards")[0].heading == "Do you sell gift cards?"


def test_what_nobody_reads_is_not_found(shop: Library) -> None:
    assert shop.search("alert home secret") == []
    assert shop.search("?!") == []
    assert shop.search("kettle", "no such collection") == []


def test_only_what_changed_is_written_and_what_is_gone_is_deleted(shop: Library) -> None:
    again = shop.sync()
    assert {each.change for each in again.values()} == {Change.UNCHANGED}
    shop.write("returns.md", RETURNS.replace("30 days", "60 days"))
    (shop.folder / "faq.csv").unlink()
    changes = {uri: each.change for uri, each in shop.sync().items()}
    assert changes["returns.md"] is Change.CHANGED
    assert changes["faq.csv"] is Change.DELETED
    assert list(changes.values()).count(Change.UNCHANGED) == 3
    assert "60 days" in shop.search("leaking kettle")[0].content
    assert all(each.uri != "faq.csv" for each in shop.search("gift cards Bremen"))
    [collection] = list_collections(shop.database, shop.tenant_id)
    versions = {
        each.uri: each.version for each in list_documents(shop.database, collection.collection_id)
    }
    assert versions["returns.md"] == 2


def test_what_came_from_elsewhere_stays(shop: Library, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "returns.md").write_text("# Lamps\n\nLamps are returned to the lamp desk.")
    shop.sync(source=other)
    assert shop.search("lamp desk")[0].title == "Lamps"
    assert shop.search("leaking kettle")[0].title == "Returns"
    (other / "returns.md").unlink()
    assert {each.change for each in shop.sync(source=other).values()} == {Change.DELETED}
    assert shop.search("lamp desk") == []
    assert shop.search("leaking kettle")[0].title == "Returns"


def counted(library: Library) -> tuple[object, ...]:
    """What is counted of a collection, and the same from its passages."""
    [row] = library.database.run("""
        SELECT c.passage_count, c.total_length,
            (SELECT jsonb_object_agg(lexeme, df) FROM collection_terms) AS terms,
            (SELECT count(*) FROM passages) AS passages,
            (SELECT coalesce(sum(length), 0) FROM passages) AS length,
            (SELECT jsonb_object_agg(lexeme, n) FROM (
                SELECT l.lexeme, count(*) AS n FROM passages p, unnest(p.terms) l GROUP BY 1
            ) x) AS counted
        FROM collections c""")
    return row


def test_what_is_counted_of_a_collection_stays_true(shop: Library) -> None:
    def check() -> None:
        row = counted(shop)
        assert (row.passage_count, row.total_length) == (row.passages, row.length)  # type: ignore[attr-defined]
        assert row.terms == row.counted  # type: ignore[attr-defined]

    check()
    shop.write("returns.md", "Kettles, kettles and kettles.")
    shop.write("new.md", RETURNS)
    (shop.folder / "zh.md").unlink()
    shop.sync()
    check()
    collection = find_collection(shop.database, shop.tenant_id, "shop")
    assert delete_documents(shop.database, collection.collection_id, ["new.md", "absent"]) == 1
    check()
    delete_collection(shop.database, collection.collection_id)
    assert (
        shop.database.run("SELECT 1 FROM passages UNION ALL SELECT 1 FROM collection_terms") == []
    )
    with pytest.raises(NotFound, match="There are: none yet"):
        find_collection(shop.database, shop.tenant_id, "shop")


def test_tenants_do_not_find_each_others_passages(shop: Library) -> None:
    mine = shop.tenant_id
    shop.tenant_id = create_tenant(shop.database, "other", shop.settings)
    assert shop.search("leaking kettle") == []
    shop.write("returns.md", "# Theirs\n\nA kettle that leaks is ours.")
    shop.sync()
    assert {each.title for each in shop.search("leaking kettle", limit=50)} == {"Theirs"}
    shop.tenant_id = mine
    assert {each.title for each in shop.search("leaking kettle", limit=50)} == {"Returns"}


def test_a_file_that_cannot_be_read_keeps_what_is_known_of_it(shop: Library) -> None:
    (shop.folder / "returns.md").write_bytes(b"\xff\xfe\x00")
    shop.write("faq.csv", "q,a\nx,y\n")
    found = shop.sync()
    assert found["returns.md"].change is Change.UNREADABLE
    assert "save it as UTF-8" in found["returns.md"].reason
    assert found["faq.csv"].change is Change.UNREADABLE
    assert shop.search("leaking kettle")[0].uri == "returns.md"


def test_a_source_that_is_not_there_deletes_nothing(shop: Library) -> None:
    with pytest.raises(InvalidInput, match="no file or folder"):
        shop.sync(source=shop.folder / "absent")
    [picture] = shop.sync(source=shop.folder / "picture.png").values()
    assert "no reader for '.png'" in picture.reason
    assert shop.search("leaking kettle")


def test_a_long_text_is_cut_at_the_ends_of_sentences(library: Library) -> None:
    sentence = "The {} is kept in the cellar of the house by the river. "
    library.write("long.txt", "".join(sentence.format(f"word{n}") for n in range(200)))
    library.write("endless.txt", "x" * 5000)
    passages = {uri: each.passage_count for uri, each in library.sync().items()}
    assert passages["endless.txt"] == 5
    [found] = library.search("word77", limit=2)
    assert len(found.content) <= 1000
    assert found.content.startswith("The ")
    assert found.content.endswith("river.")
