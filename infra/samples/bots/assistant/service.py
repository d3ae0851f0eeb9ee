"""A stand-in for the calendar and the restaurant: JSON by HTTP, on loopback, in memory.

python -m turnmill.infra.samples.bots.assistant.service --port 8010
"""

import argparse
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, TypedDict

#: Seats of each table, by its number.
TABLES = {1: 2, 2: 2, 3: 4, 4: 6, 5: 12}
MAX_BODY_BYTES = 10_000


class Refused(Exception):
    """What was asked for cannot be done; the text says why, and is for the model."""


class Event(TypedDict):
    day: str
    time: str
    minutes: int
    title: str


class Booking(TypedDict):
    booking: int
    table: int
    day: str
    time: str
    name: str


class Diary:
    """Events and bookings. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.events: list[Event] = []
        self.bookings: list[Booking] = []

    def list_events(self, day: str) -> list[Event]:
        return [event for event in self.events if event["day"] == day]

    def add_event(self, day: str, time: str, minutes: int, title: str) -> Event:
        start = _minute_of(time)
        with self._lock:
            for other in self.list_events(day):
                began = _minute_of(other["time"])
                if start < began + other["minutes"] and began < start + minutes:
                    raise Refused(f"'{other['title']}' is at {other['time']} already.")
            self.events.append({"day": day, "time": time, "minutes": minutes, "title": title})
        return self.events[-1]

    def find_table(self, day: str, time: str, people: int) -> list[dict[str, int]]:
        _minute_of(time)
        taken = self._taken(day, time)
        return [
            {"table": table, "seats": seats}
            for table, seats in TABLES.items()
            if seats >= people and table not in taken
        ]

    def book_table(self, table: int, day: str, time: str, name: str) -> Booking:
        _minute_of(time)
        with self._lock:
            if table not in TABLES:
                raise Refused(f"There is no table {table}.")
            if table in self._taken(day, time):
                raise Refused(f"Table {table} is taken at {time}.")
            number = len(self.bookings) + 1
            booking: Booking = {
                "booking": number,
                "table": table,
                "day": day,
                "time": time,
                "name": name,
            }
            self.bookings.append(booking)
        return booking

    def _taken(self, day: str, time: str) -> set[int]:
        return {
            each["table"] for each in self.bookings if (each["day"], each["time"]) == (day, time)
        }


def _minute_of(time: str) -> int:
    """Count the minutes since midnight. Raises `Refused`."""
    hour, _, minute = time.partition(":")
    if not (hour.isdecimal() and minute.isdecimal() and int(hour) < 24 and int(minute) < 60):
        raise Refused(f"'{time}' is no time. Write it as 18:30.")
    return int(hour) * 60 + int(minute)


class Handler(BaseHTTPRequestHandler):
    """`POST /add_event` with the arguments as JSON: 200 with the result, or 409 with a reason."""

    diary: ClassVar[Diary]
    #: What can be called; whatever else a model asks for is refused.
    CALLS: ClassVar[tuple[str, ...]] = ("list_events", "add_event", "find_table", "book_table")

    def do_POST(self) -> None:
        name = self.path.removeprefix("/")
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BODY_BYTES))
        try:
            if name not in self.CALLS:
                raise Refused(f"There is no tool '{name[:50]}'.")
            call: Callable[..., object] = getattr(self.diary, name)
            self._answer(200, call(**json.loads(body)))
        except Refused as refused:
            self._answer(409, {"error": str(refused)})
        except (TypeError, ValueError):
            self._answer(409, {"error": f"The arguments do not fit '{name[:50]}'."})

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(port: int = 0) -> ThreadingHTTPServer:
    """Make a server with an empty diary; 0 is any free port. The caller runs and closes it."""
    handler = type("OwnHandler", (Handler,), {"diary": Diary()})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A calendar and a restaurant, on loopback.")
    parser.add_argument("--port", type=int, default=8010)
    with serve(parser.parse_args().port) as server:
        server.serve_forever()
