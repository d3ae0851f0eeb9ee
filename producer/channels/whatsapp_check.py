"""Ask Meta whether a WhatsApp channel's access token reaches its number."""

from collections.abc import Iterator

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection


def check_whatsapp(section: WhatsAppSection) -> Iterator[Finding]:
    """Read the number that the token is for. Raises `SettingsError`: a secret is missing."""
    token = section.access_token.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/{section.phone_number_id}"
    try:
        status, answer = ask(
            f"{url}?fields=display_phone_number,verified_name",
            headers={"Authorization": f"Bearer {token}"},
        )
    except Unanswered as error:
        yield broken(f"the Graph API does not answer: {error}")
        return
    if status != 200:
        said = answer.get("error", {}) if isinstance(answer, dict) else {}
        yield broken(
            f"the Graph API refuses: {said.get('message', status)}",
            "Compare phone_number_id, and the permissions of the system user's token.",
        )
        return
    yield ok(f"the number is {answer.get('display_phone_number')} ({answer.get('verified_name')})")
