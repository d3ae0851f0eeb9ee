"""TensorFlow Serving's REST API, as far as an engine needs it.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal

import httpx

from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    Unanswered,
)
from turnmill.schemas.observability.masking import masked_urls
from turnmill.schemas.process.clients import http_client
from turnmill.schemas.process.retry_after import retry_after_s
from turnmill.schemas.settings import EngineSettings

#: Seconds for a connection and for a look at the model; predictions may take `silence_s`.
LOOK_S = 5.0

#: Statuses that speak of the request. All others speak of the server.
REFUSALS = frozenset({400, 413, 422, 501})

#: Those of a server, or of a gateway before it, that has too much to do.
BUSY = frozenset({429, 503})

#: Which signature is asked, if there are several.
SIGNATURES = ("generate", "classify", "serving_default")

#: What Turnmill can give a signature.
INPUTS = frozenset(
    {
        "attention_mask",
        "decoder_input_ids",
        "decoder_length",
        "input_ids",
        "length",
        "limit",
        "seed",
        "temperature",
        "token_type_ids",
        "top_p",
    }
)


@dataclass(frozen=True, slots=True)
class Signature:
    name: str
    inputs: frozenset[str]
    #: The one output that is read.
    output: str
    #: Token ids, or a label's score each.
    kind: Literal["tokens", "scores"]


class ModelClient:
    """One model of one server. Thread-safe."""

    def __init__(self, endpoint: str, settings: EngineSettings) -> None:
        self.endpoint = masked_urls(endpoint)
        self._model = f"/v1/models/{settings.model_at_endpoints}"
        #: Digits are a version, all else is a label.
        version = settings.remote_version
        self._is_label = version is not None and not version.isdigit()
        group = "labels" if self._is_label else "versions"
        self._version = f"{self._model}/{group}/{version}" if version else self._model
        key = settings.endpoint_key
        # As many as the worker has turns; it bounds them itself.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = http_client(
            endpoint,
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            timeout=httpx.Timeout(settings.silence_s, connect=LOOK_S),
            limits=limits,
        )
        self._closed = Event()

    def close(self) -> None:
        self._closed.set()
        self._http.close()

    def look(self) -> Signature:
        """How the model wants to be asked. Raises `EngineUnavailable` if it is not ready."""
        if not self._is_label:  # of labels the status knows nothing
            self._require_available()
        metadata = self._get(f"{self._version}/metadata")
        try:
            # Twice by this name, for the protocol buffer is inside an Any.
            signatures = metadata["metadata"]["signature_def"]["signature_def"]
        except (KeyError, TypeError) as error:
            raise EngineUnavailable(f"its metadata lacks {error}") from error
        return choose_signature(signatures)

    def predict(self, signature: Signature, inputs: Mapping[str, list[object]]) -> list[float]:
        """The signature's output for one turn.

        Raises:
            EngineUnavailable: the server cannot answer, or not this model.
            EngineFailure: it refuses the inputs.
        """
        response = self._send(
            "POST",
            f"{self._version}:predict",
            json={"signature_name": signature.name, "inputs": inputs},
        )
        if response.status_code in REFUSALS:
            # An unknown label or signature is the server's fault: then looking fails, too.
            self.look()
            raise EngineFailure(f"{self.endpoint} refuses the prompt: {_error_of(response)}")
        outputs = _json_of(response).get("outputs")
        # A single named tensor comes without its name.
        found = outputs.get(signature.output) if isinstance(outputs, dict) else outputs
        if not isinstance(found, list) or not found or not isinstance(found[0], list):
            raise EngineUnavailable(f"it answers without '{signature.output}' for the turn")
        row: list[float] = found[0]
        return row

    def _require_available(self) -> None:
        versions = self._get(self._version).get("model_version_status") or []
        states = {each.get("version"): each for each in versions}
        if not any(each.get("state") == "AVAILABLE" for each in states.values()):
            told = ", ".join(f"{name} is {_state_of(each)}" for name, each in states.items())
            raise EngineAway(f"no version of its model is available ({told or 'none'})")

    def _get(self, path: str) -> dict[str, Any]:
        return _json_of(self._send("GET", path, timeout=LOOK_S))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        if self._closed.is_set():
            raise EngineUnavailable("The engine is closed.")
        try:
            return self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise Unanswered("it does not answer in time") from error
        except httpx.ConnectError as error:
            raise EngineAway(f"it cannot be reached: {error}") from error
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise EngineBrokeOff(f"it broke off: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineUnavailable(f"it cannot be asked: {error}") from error
        except RuntimeError as error:  # closed a moment ago
            raise EngineUnavailable("The engine is closed.") from error


def choose_signature(definitions: Mapping[str, Any]) -> Signature:
    """The first of `SIGNATURES`; raises `EngineUnavailable` for one that cannot be asked."""
    name = next((name for name in SIGNATURES if name in definitions), None)
    if name is None:
        raise EngineUnavailable(
            f"its model has none of the signatures {', '.join(SIGNATURES)}, only "
            f"{', '.join(sorted(definitions)) or 'none'}"
        )
    inputs = frozenset(definitions[name].get("inputs") or ())
    if "input_ids" not in inputs or not inputs <= INPUTS:
        raise EngineUnavailable(
            f"its signature '{name}' takes {', '.join(sorted(inputs))}; Turnmill gives input_ids "
            f"and, if wanted, {', '.join(sorted(INPUTS - {'input_ids'}))}"
        )
    outputs = definitions[name].get("outputs") or {}
    dtypes = {tensor.get("dtype"): output for output, tensor in outputs.items()}
    if output := dtypes.get("DT_INT32") or dtypes.get("DT_INT64"):
        if "limit" not in inputs:
            raise EngineUnavailable(f"its signature '{name}' generates, but takes no 'limit'")
        return Signature(name, inputs, output, "tokens")
    if output := dtypes.get("DT_FLOAT"):
        return Signature(name, inputs, output, "scores")
    raise EngineUnavailable(f"its signature '{name}' gives neither token ids nor scores")


def _json_of(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        kind = EngineBusy if response.status_code in BUSY else EngineUnavailable
        raise kind(
            f"it answers {response.status_code}: {_error_of(response)}",
            retry_after_s=retry_after_s(response.headers),
        )
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineUnavailable("it answers something else than TensorFlow Serving would")
    return found


def _error_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _state_of(version: Mapping[str, Any]) -> str:
    message = (version.get("status") or {}).get("error_message")
    return f"{version.get('state')}: {message}" if message else str(version.get("state"))
