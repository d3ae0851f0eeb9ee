"""`/rate/…`: raters come with the secret of their link, and need nothing else.

The secret in the address is all that a call needs, and no cookie is set: another site cannot make
a rater's browser send what it does not know. Nothing here tells who wrote a reply.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import parse_qs, urlencode
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from turnmill.producer.api.headers import read_body
from turnmill.producer.api.rating import page
from turnmill.producer.api.rating.static import asset
from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.studies.model import Rater
from turnmill.producer.studies.raters import find_rater
from turnmill.producer.studies.rating import MAX_COMMENT_CHARS, next_item, standing, submit, undo
from turnmill.producer.studies.texts import TEXTS, Language, choose_language
from turnmill.schemas.errors import Conflict, InvalidInput, NotFound
from turnmill.schemas.postgres.database import Database

router = APIRouter(include_in_schema=False)

#: More than a comment and a few numbers take.
_MAX_FORM_BYTES = 64 * 1024

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
#: Pages change with every rating, and their addresses are secret.
_PAGE_HEADERS = {**_HEADERS, "Cache-Control": "no-store"}

SecretOf = Annotated[str, Path(max_length=100)]
LanguageOf = Annotated[str | None, Query(max_length=20)]
Answer = Callable[[Rater, Language], Awaitable[Response]]


@router.get("/rate/static/{name}")
async def get_asset(name: str) -> Response:
    """Serve the page's style and script."""
    found = asset(name)
    if found is None:
        raise HTTPException(404)
    return FileResponse(found, headers={**_HEADERS, "Cache-Control": "max-age=3600"})


@router.get("/rate/{secret}")
async def get_page(
    request: Request, services: ServicesOf, secret: SecretOf, lang: LanguageOf = None
) -> Response:
    """Show the item that the rater holds, or the next one."""
    return await _with_rater(
        request, services, secret, lang, lambda rater, language: _show(services, rater, language)
    )


@router.post("/rate/{secret}")
async def post_rating(
    request: Request, services: ServicesOf, secret: SecretOf, lang: LanguageOf = None
) -> Response:
    """Take a rating, or the last one back, and lead to the next item."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return HTMLResponse("This form was sent by another site.", 403, headers=_PAGE_HEADERS)
    form = _read_form(await read_body(request, _MAX_FORM_BYTES))
    # Relative, for the API may stand behind a prefix.
    address = f"./{secret}" + (f"?{urlencode({'lang': lang})}" if lang else "")

    async def act(rater: Rater, language: Language) -> Response:
        try:
            await services.call(_act, services.database, rater, form)
        except InvalidInput as error:
            texts = TEXTS[language]
            too_long = texts.long_comment.format(most=MAX_COMMENT_CHARS)
            alert = too_long if error.param == "comment" else texts.incomplete
            return await _show(services, rater, language, alert)
        except Conflict:
            pass  # The next page shows what is the rater's own now.
        return RedirectResponse(address, 303, headers=_PAGE_HEADERS)

    return await _with_rater(request, services, secret, lang, act)


def _act(database: Database, rater: Rater, form: dict[str, str]) -> None:
    """Raises `InvalidInput` and `Conflict`."""
    if form.get("action") == "undo":
        undo(database, rater)
        return
    try:
        item_id = UUID(hex=form.get("item", ""))
        values = {name: int(form[name]) for name in rater.study.dimensions if name in form}
    except ValueError:
        raise InvalidInput("The form is not one of this page.") from None
    submit(database, rater, item_id, values, form.get("comment"))


async def _with_rater(
    request: Request,
    services: Services,
    secret: str,
    lang: str | None,
    answer: Answer,
) -> Response:
    language = choose_language(lang, request.headers.get("accept-language", ""))
    try:
        # Apart from other calls: anybody may guess.
        rater = await services.lookout.call(lambda database: find_rater(database, secret))
    except NotFound:
        texts = TEXTS[language]
        body = f"<main><h1>{texts.title}</h1><p>{texts.invalid_link}</p></main>"
        return HTMLResponse(page.document(texts, language, body), 404, headers=_PAGE_HEADERS)
    return await answer(rater, language)


async def _show(services: Services, rater: Rater, language: Language, alert: str = "") -> Response:
    def make() -> str:
        item = next_item(services.database, rater)
        now = standing(services.database, rater)
        return page.render(rater, item, now, TEXTS[language], language, alert=alert)

    status = 400 if alert else 200
    return HTMLResponse(await services.call(make), status, headers=_PAGE_HEADERS)


def _read_form(body: bytes) -> dict[str, str]:
    """Read `application/x-www-form-urlencoded`. Raises `InvalidInput`."""
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise InvalidInput("The form cannot be read.") from None
    return {name: values[-1] for name, values in fields.items()}
