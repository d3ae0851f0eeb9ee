"""A client that runs the assistant's tools: it asks before it changes anything.

    OPENAI_API_KEY=tm-… python -m turnmill.infra.samples.bots.assistant.client

It needs `pip install openai`, the bot (`turnmill bots sample assistant`), and the service beside it
(service.py).
"""

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

TOOLS = json.loads(Path(__file__).with_name("tools.json").read_text())
#: Tools that change something.
CHANGING = ("add_event", "book_table")
#: Rounds of calls for one message, at most: a model that calls for ever is stopped.
MAX_ROUNDS = 6
TIMEOUT_S = 10

Confirm = Callable[[str, dict[str, object]], bool]


class Assistant:
    """One dialogue with the bot."""

    def __init__(self, client: openai.OpenAI, service_url: str, confirm: Confirm) -> None:
        self._client, self._service_url, self._confirm = client, service_url, confirm
        self._messages: list[Any] = []

    def say(self, text: str) -> str:
        """Send a message, run what the model calls, and return its answer."""
        self._messages.append({"role": "user", "content": text})
        for _ in range(MAX_ROUNDS):
            completion = self._client.chat.completions.create(
                model="assistant", messages=self._messages, tools=TOOLS
            )
            reply = completion.choices[0].message
            self._messages.append(reply.model_dump(exclude_none=True))
            if not reply.tool_calls:
                return reply.content or ""
            for call in reply.tool_calls:
                if call.type != "function":
                    continue
                result = self._run(call.function.name, call.function.arguments)
                self._messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return "I could not finish that."

    def _run(self, name: str, arguments: str) -> str:
        """Run one call, and return its result for the model, as JSON."""
        values = json.loads(arguments)
        if name in CHANGING and not self._confirm(name, values):
            return json.dumps({"error": "The user said no."})
        request = urllib.request.Request(
            f"{self._service_url}/{name}", arguments.encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return json.dumps({"error": "The service does not answer."})


def _ask(name: str, values: dict[str, object]) -> bool:
    return input(f"  {name} {values}: do it? [y/N] ").strip().lower() == "y"


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk with the assistant; Ctrl-D ends.")
    parser.add_argument("--api", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--service", default="http://127.0.0.1:8010")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.api)
    assistant = Assistant(client, options.service, _ask)
    try:
        while True:
            print(assistant.say(input("> ")))  # noqa: T201 - a command
    except EOFError:
        pass


if __name__ == "__main__":
    main()
