"""Ask Chatwoot whether a channel's token is good."""

from collections.abc import Iterator

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, note, ok, warning
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection


def check_chatwoot(section: ChatwootSection) -> Iterator[Finding]:
    """Read a conversation that no account has: a good token finds nothing.

    Raises `SettingsError`: a secret is missing.
    """
    token = section.bot_token.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/api/v1/accounts/{section.account_id}/conversations/0"
    try:
        status, answer = ask(url, headers={"api_access_token": token})
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")
        return
    said = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    if status == 404 or "for bots" in said:
        yield ok(f"the token is good for the account {section.account_id}")
    elif status == 401:
        yield broken(
            f"the token is not taken: {said[:200] or status}",
            "Compare bot_token and account_id. A proxy before Chatwoot must let the header "
            "api_access_token through (nginx: underscores_in_headers on).",
        )
    else:
        yield warning(f"Chatwoot answered {status}", "Check api_url and account_id.")
    if "for bots" in said:
        yield note("this Chatwoot shows bots no conversations: a reply can appear twice")
    if section.webhook_secret is None:
        yield warning(
            "requests are not signed: url_token alone says who sent them",
            "From Chatwoot 4.13 on, set webhook_secret.",
        )
