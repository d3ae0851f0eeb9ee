"""The raters' page over HTTP, without a browser."""

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.evaluation.conftest import Page
from turnmill.producer.studies.lookup import close_study
from turnmill.producer.studies.results import read_ratings

RATED = {"fluency": "5", "coherence": "4", "informativeness": "3"}


@pytest.fixture
def client(page: Page) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url, timeout=30, follow_redirects=True) as client:
        yield client


def item_of(response: httpx.Response) -> str:
    (item,) = re.findall(r'name="item" value="([0-9a-f]{32})"', response.text)
    return str(item)


def submit(client: httpx.Client, address: str, item: str, **fields: str) -> httpx.Response:
    return client.post(address, data={"action": "submit", "item": item, **fields})


def test_a_rater_rates_and_is_led_to_the_next_item(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    first = client.get(address)
    assert first.status_code == 200
    assert item_of(client.get(address)) == item_of(first)

    second = submit(client, address, item_of(first), **RATED, comment=" fine ")

    assert item_of(second) != item_of(first)
    assert "1 of 10 rated" in second.text
    ratings = read_ratings(page.database, page.study)
    assert {each.dimension: str(each.value) for each in ratings} == RATED
    assert {each.comment for each in ratings} == {"fine"}


def test_the_page_never_tells_who_wrote_what(client: httpx.Client, page: Page) -> None:
    text = client.get(page.invite("ada")).text
    assert "secret-bot" not in text
    assert "secret-model" not in text


def test_texts_of_users_and_models_are_no_markup(client: httpx.Client, page: Page) -> None:
    text = client.get(page.invite("ada")).text
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_undo_leads_back(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    first = item_of(client.get(address))
    submit(client, address, first, **RATED)

    back = client.post(address, data={"action": "undo"})

    assert item_of(back) == first
    assert read_ratings(page.database, page.study) == []


@pytest.mark.parametrize(
    "fields", [{}, {"fluency": "5"}, {**RATED, "fluency": "9"}, {**RATED, "fluency": "x"}]
)
def test_an_incomplete_form_is_shown_again(
    client: httpx.Client, page: Page, fields: dict[str, str]
) -> None:
    address = page.invite("ada")
    item = item_of(client.get(address))

    again = submit(client, address, item, **fields)

    assert again.status_code == 400
    assert "Please answer every question." in again.text
    assert item_of(again) == item


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("a%00b", "a\ufffdb"),
        ("%ED%A0%80", "\ufffd\ufffd\ufffd"),
        ("%0D%0A".join("x" * 1000), "\n".join("x" * 1000)),
        ("%00", "\ufffd"),
        ("+", None),
    ],
)
def test_a_comment_of_any_characters_is_kept(
    client: httpx.Client, page: Page, sent: str, stored: str | None
) -> None:
    address = page.invite("ada")
    fields = {"item": item_of(client.get(address)), **RATED}
    body = "&".join(f"{name}={value}" for name, value in fields.items()) + f"&comment={sent}"
    assert client.post(address, content=body).status_code == 200
    assert {each.comment for each in read_ratings(page.database, page.study)} == {stored}


def test_a_comment_that_is_too_long_is_refused_by_name(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    item = item_of(client.get(address))
    again = submit(client, address, item, **RATED, comment="x" * 2001)
    assert again.status_code == 400
    assert "at most 2,000 characters" in again.text
    assert read_ratings(page.database, page.study) == []


@pytest.mark.parametrize("name", ["item", "fluency", "action", "%00", "%ED%A0%80"])
@pytest.mark.parametrize("value", ["%00", "%ED%A0%80", "9" * 5000, "1%00"])
def test_no_field_of_the_form_breaks_the_page(
    client: httpx.Client, page: Page, name: str, value: str
) -> None:
    address = page.invite("ada")
    fields = {"item": item_of(client.get(address)), "fluency": "5", name: value}
    body = "&".join(f"{name}={value}" for name, value in fields.items())
    assert client.post(address, content=body).status_code == 400
    for query in ("?lang=%00", "?lang=%ED%A0%80"):
        assert client.get(address + query).status_code == 200


def test_a_rating_that_was_sent_twice_counts_once(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    item = item_of(client.get(address))
    submit(client, address, item, **RATED)

    again = submit(client, address, item, **{**RATED, "fluency": "1"})

    assert again.status_code == 200
    values = [e.value for e in read_ratings(page.database, page.study) if e.dimension == "fluency"]
    assert values == [5]


def test_a_study_ends_with_thanks(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    shown = client.get(address)
    for _ in range(10):
        shown = submit(client, address, item_of(shown), **RATED)
    assert "nothing left for you" in shown.text
    assert 'value="undo"' in shown.text

    close_study(page.database, page.study)
    assert "closed" in client.get(address).text


@pytest.mark.parametrize(
    ("query", "header", "said", "language"),
    [
        ("", "zh-CN,en;q=0.5", "流畅性", "zh-Hans"),
        ("", "en", "Fluency", "en"),
        ("?lang=zh", "en", "流畅性", "zh-Hans"),
        ("?lang=en", "zh", "Fluency", "en"),
    ],
)
def test_the_page_speaks_the_raters_language(
    client: httpx.Client, page: Page, query: str, header: str, said: str, language: str
) -> None:
    address = page.invite("ada") + query
    shown = client.get(address, headers={"Accept-Language": header})
    assert said in shown.text
    assert f'<html lang="{language}">' in shown.text

    after = client.post(address, data={"action": "undo"}, headers={"Accept-Language": header})
    assert said in after.text


def test_wrong_and_expired_links_show_a_page_and_nothing_else(
    client: httpx.Client, page: Page
) -> None:
    address = page.invite("ada")
    page.database.run("UPDATE study_raters SET expires_at = clock_timestamp()")
    for wrong in (address, "/rate/x", f"/rate/{'x' * 43}"):
        shown = client.get(wrong)
        assert shown.status_code == 404
        assert "expired" in shown.text
        assert client.post(wrong, data={"action": "undo"}).status_code == 404


def test_another_site_cannot_send_the_form(client: httpx.Client, page: Page) -> None:
    address = page.invite("ada")
    headers = {"Sec-Fetch-Site": "cross-site"}
    refused = client.post(address, data={"action": "undo"}, headers=headers)
    assert refused.status_code == 403


def test_the_page_may_load_its_own_style_and_script_alone(client: httpx.Client, page: Page) -> None:
    shown = client.get(page.invite("ada"))
    policy = shown.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert shown.headers["Cache-Control"] == "no-store"
    assert shown.headers["Referrer-Policy"] == "no-referrer"
    assert "set-cookie" not in shown.headers
    assert not re.search(r"<style|<script(?! src)|\son\w+=|https?://", shown.text)
    for name, kind in (("rater.css", "text/css"), ("rater.js", "text/javascript")):
        asset = client.get(f"/rate/static/{name}")
        assert asset.headers["Content-Type"].startswith(kind)
    assert client.get("/rate/static/__init__.py").status_code == 404
