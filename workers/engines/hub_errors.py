"""What huggingface_hub and its HTTP client raise, as sentences that say what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from turnmill.schemas.errors import EngineUnavailable, NotFound, SettingsError, TurnmillError
from turnmill.schemas.process.network import refuse_unusable_network


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, which names a mirror, or the hub's own."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub and of its HTTP client into sentences."""
    try:
        yield
    except TurnmillError:
        raise
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: pip install 'turnmill[openvino]'"
        ) from None
    except Exception as error:
        if (ours := _translate(what, error)) is None:
            raise
        raise ours from error


def _translate(what: str, error: Exception) -> TurnmillError | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return _refusal(what, status, type(error).__name__ == "GatedRepoError")
    # The HTTP client is httpx or httpx2, by the version of huggingface_hub.
    if isinstance(error, ImportError | ValueError):
        try:
            refuse_unusable_network([endpoint()])
        except SettingsError as unusable:
            return unusable
    kinds = {each.__name__ for each in type(error).__mro__}
    if "LocalEntryNotFoundError" in kinds and isinstance(error.__cause__, Exception):
        # What is not cached was asked for, and this is why the hub did not give it.
        return _translate(what, error.__cause__)
    if "OfflineModeIsEnabled" in kinds:
        return SettingsError("HF_HUB_OFFLINE forbids downloads: unset it, and run again.")
    if "ProxyError" in kinds:
        return SettingsError(
            "The proxy that HTTPS_PROXY names refuses or fails. Correct its address, its name and "
            "password, or unset it."
        )
    if kinds & {"ConnectError", "ConnectTimeout"}:
        return SettingsError(
            f"{endpoint()} cannot be reached from this machine. Behind a proxy set HTTPS_PROXY; "
            "where the hub is blocked set HF_ENDPOINT to a mirror; without a network copy the "
            "folder of models from a machine that has one."
        )
    if "TransportError" in kinds or "Consistency check failed" in str(error):
        return EngineUnavailable(
            f"The download of {what} broke off. What arrived is kept: run the command again to "
            "resume it."
        )
    if isinstance(error, OSError):
        return SettingsError(f"{what} cannot be written: {error.strerror or error}")
    return None


def _refusal(what: str, status: int, is_gated: bool) -> TurnmillError:
    page = f"{endpoint()}/{'/'.join(what.split('/')[:2])}"
    if is_gated or status == HTTPStatus.FORBIDDEN:
        return SettingsError(
            f"{page} is given only to accounts that accepted its conditions ({status}). Accept "
            f"them on that page, make a token at {endpoint()}/settings/tokens, and set HF_TOKEN."
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return SettingsError(
            f"{page} wants a token ({status}): it is private, gated or gone. Set HF_TOKEN to a "
            "valid token of an account that may read it."
        )
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return SettingsError("The proxy wants a name and a password: put them into HTTPS_PROXY.")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(
            f"{endpoint()} has no {what} ({status}): it was renamed or removed, or the mirror that "
            "HF_ENDPOINT names lacks it. Another model: turnmill models available."
        )
    return EngineUnavailable(
        f"{endpoint()} answers {status} to {what}. What arrived is kept: run the command again in "
        "a while, or set HF_ENDPOINT to a mirror."
    )
