"""RabbitMQ's management API. https://www.rabbitmq.com/docs/http-api-reference"""

import base64
import http.client
import json
from urllib.parse import unquote, urlsplit

from turnmill.schemas.errors import BrokerUnavailable

#: The port of the API where the broker's own URL has this scheme.
PORTS = {"amqp": 15672, "pyamqp": 15672, "amqps": 15671}


class Refused(Exception):
    """RabbitMQ answered with an error status."""

    def __init__(self, call: str, status: int) -> None:
        super().__init__(f"RabbitMQ refused {call}: {status}")
        self.status = status


def manage(
    url: str, method: str, path: str, body: object = None, *, timeout_s: float = 5.0
) -> object:
    """Call the API once; the JSON of the answer, None if it has no body.

    Args:
        url: `http://user:password@host:15672`, user and password percent-encoded.
        path: what follows `/api/`, percent-encoded.
        body: sent as JSON, unless it is None.

    Raises:
        Refused: the status of the answer is no success.
        BrokerUnavailable: nobody answers there, or not as RabbitMQ does.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = {
        "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
        "Content-Type": "application/json",
    }
    content = None if body is None else json.dumps(body)
    connection = kind(parts.hostname or "localhost", parts.port, timeout=timeout_s)
    try:
        connection.request(method, f"{parts.path.rstrip('/')}/api/{path}", content, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status >= http.client.BAD_REQUEST:
            raise Refused(f"{method} {path}", response.status)
        return json.loads(answer) if answer else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BrokerUnavailable(
            f"RabbitMQ's management API cannot be reached: {type(error).__name__}: {error}"
        ) from error
    finally:
        connection.close()
