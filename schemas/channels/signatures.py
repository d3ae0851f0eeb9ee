"""Signatures of requests between platforms and us, both ways: HMAC-SHA256 over time and body."""

import base64
import binascii
import hashlib
import hmac

from pydantic import SecretStr

from turnmill.schemas.errors import SettingsError

#: How old a signed request may be, or how far ahead its clock, seconds. Slack and Standard Webhooks
#: name the same: https://docs.slack.dev/authentication/verifying-requests-from-slack
WINDOW_S = 300

_PREFIX = "whsec_"


def sign_slack(secret: SecretStr, timestamp: str, body: bytes) -> str:
    """Return the value of `X-Slack-Signature`."""
    signed = b":".join((b"v0", timestamp.encode(), body))
    return "v0=" + hmac.digest(secret.get_secret_value().encode(), signed, "sha256").hex()


def sign_whatsapp(secret: SecretStr, body: bytes) -> str:
    """Return the value of `X-Hub-Signature-256`.

    https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads
    """
    return "sha256=" + hmac.digest(secret.get_secret_value().encode(), body, "sha256").hex()


def sign_webhook(key: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of `webhook-signature`, which may hold several, separated by spaces.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    signed = b".".join((webhook_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def webhook_key(secret: SecretStr) -> bytes:
    """Decode `whsec_<base64>`. Raises `SettingsError`."""
    encoded = secret.get_secret_value().removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise SettingsError(
            "The secret of a webhook is whsec_ and 24 to 64 bytes in base64. "
            'Make one: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def sign_teams(key: bytes, body: bytes) -> str:
    """Return the value of the header `Authorization` of an outgoing webhook.

    https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-outgoing-webhook
    """
    return "HMAC " + base64.b64encode(hmac.digest(key, body, "sha256")).decode()


def teams_key(token: SecretStr) -> bytes:
    """Decode the security token of an outgoing webhook. Raises `SettingsError`."""
    try:
        key = base64.b64decode(token.get_secret_value(), validate=True)
    except ValueError:
        key = b""
    if len(key) < 16:
        raise SettingsError(
            "The security token of an outgoing webhook is 44 characters of base64. Teams shows it "
            "once: create the webhook anew."
        )
    return key


def sign_dingtalk(secret: SecretStr, timestamp: str) -> str:
    """Return the value of the header `sign`. It covers the time, in milliseconds, and no body.

    https://open.dingtalk.com/document/orgapp/receive-message
    """
    key = secret.get_secret_value().encode()
    signed = b"\n".join((timestamp.encode(), key))
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def sign_chatwoot(secret: SecretStr, timestamp: str, body: bytes) -> str:
    """Return the value of `X-Chatwoot-Signature`; the time is Unix seconds.

    As `lib/webhooks/trigger.rb` makes it: https://github.com/chatwoot/chatwoot/pull/13892
    """
    signed = b".".join((timestamp.encode(), body))
    return "sha256=" + hmac.digest(secret.get_secret_value().encode(), signed, "sha256").hex()


def are_equal(given: str, expected: str) -> bool:
    """Compare in constant time; what a header holds need not be ASCII."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def is_in_window(timestamp: str, now: float) -> bool:
    """Whether Unix seconds in decimal digits are within `WINDOW_S` of now."""
    return timestamp.isdecimal() and len(timestamp) < 16 and abs(now - int(timestamp)) <= WINDOW_S


def sign_feishu(secret: SecretStr, timestamp: str, nonce: str, body: bytes) -> str:
    """Return the value of `X-Lark-Signature`. The secret is the app's Encrypt Key.

    As `lark_oapi.event.EventDispatcherHandler` checks it (1.7.5).
    """
    signed = f"{timestamp}{nonce}{secret.get_secret_value()}".encode() + body
    return hashlib.sha256(signed).hexdigest()
