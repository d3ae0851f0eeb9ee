"""`/`: what runs here, for a person who opened the address in a browser."""

from html import escape
from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from turnmill.producer.api.resources.operation import get_readiness
from turnmill.producer.api.services import ServicesOf
from turnmill.schemas.errors import TransientError

router = APIRouter()

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Turnmill</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; }}
code, pre {{ background: #8882; border-radius: 4px; padding: .1rem .3rem }}
pre {{ padding: .8rem; overflow-x: auto }}
:root {{ color-scheme: light dark }}
</style>
<h1>Turnmill {version}</h1>
<p>This is Turnmill's API: LLM dialogue on message queues. {state}</p>
<ul>
<li><a href="docs">The API's description</a>,
and <a href="openapi.json">the same for programs</a></li>
<li><a href="readyz">Whether it takes turns</a>, <a href="healthz">whether it is alive</a></li>
</ul>
<p>It speaks OpenAI's protocol. <code>turnmill keys create NAME</code> makes a key, and
<code>turnmill bots list</code> names the bots. Then:</p>
<pre>curl {url}v1/chat/completions \\
  -H "Authorization: Bearer $TURNMILL_API_KEY" -H "Content-Type: application/json" \\
  -d '{{"model": "BOT", "messages": [{{"role": "user", "content": "Where is my parcel?"}}]}}'</pre>
</html>
"""


@router.get("/", include_in_schema=False)
async def get_welcome(request: Request, services: ServicesOf) -> HTMLResponse:
    """Say what this is, without telling a stranger more than `/readyz` does."""
    try:
        await get_readiness(services)
        state = "It is ready."
    except TransientError as error:
        state = f"It takes no turns now: {escape(error.public_message)}"
    url = escape(str(request.base_url))
    return HTMLResponse(_PAGE.format(version=version("turnmill"), state=state, url=url))
