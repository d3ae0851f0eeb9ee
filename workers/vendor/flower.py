"""Holds on Flower: its parts put together without its command, and with a password everywhere.

Flower's command also obeys Celery's command line, a flowerconfig.py in the current folder and
FLOWER_* variables. Flower compares passwords as text, which fails at letters beyond ASCII, and
leaves `/metrics` open.
"""

import atexit
import signal
from base64 import b64decode
from hmac import compare_digest
from typing import Any

from celery import Celery
from flower.app import Flower
from flower.command import extract_settings, setup_logging, sigterm_handler
from flower.options import default_options as options
from flower.urls import settings as web_settings
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado.web import HTTPError, authenticated

READ_IN = {"flower": "2.2.0"}
HOLDS = {
    "flower.command:flower": "50bd33359030",
    "flower.command:extract_settings": "89cbd6e9ec21",
    "flower.command:setup_logging": "87ec4492b5c4",
    "flower.command:sigterm_handler": "7befcdadbeef",
    "flower.views:BaseHandler.get_current_user": "5b34e0f7083b",
    "flower.views:BaseHandler.check_xsrf_cookie": "5a3d0d19abf5",
    "flower.views.monitor:Metrics": "896c432a8e9e",
    "flower.app:Flower.__init__": "0ca54a69bbbb",
    "flower.app:Flower.start_http_server": "8bf64701a3c2",
}


def create_web(app: Celery, login: str, **chosen: Any) -> Flower:
    """Make Flower's web application for one `user:password`, ended by SIGTERM.

    `chosen`: Flower's options, by their names.
    """
    options.basic_auth = [login]
    for name, value in chosen.items():
        setattr(options, name, value)
    extract_settings()
    setup_logging()
    BaseHandler.get_current_user = lambda handler: _require(handler, login.encode())
    Metrics.get = authenticated(Metrics.get)
    web = Flower(capp=app, options=options, **web_settings)
    atexit.register(web.stop)
    signal.signal(signal.SIGTERM, sigterm_handler)
    return web


def _require(handler: Any, login: bytes) -> bool:
    """Compare the login of a request as bytes. https://www.rfc-editor.org/rfc/rfc7617"""
    scheme, _, token = handler.request.headers.get("Authorization", "").partition(" ")
    try:
        given = b64decode(token)
    except ValueError:
        given = b""
    if scheme.lower() != "basic" or not compare_digest(given, login):
        raise HTTPError(401)
    return True
