"""What a process takes from its surroundings: the one place that knows foreign variables.

Other programs leave variables for themselves that a library of ours would obey: libpq's PG*,
Celery's, Flower's, proxies'. Each is passed on, kept out, or refused in a sentence. A URL of ours
says where to connect; `PASSED_ON` of libpq's variables add what no URL should hold.
"""

import io
import os
import pwd
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from turnmill.schemas.errors import InvalidInput, SettingsError

PREFIX = "TURNMILL_"

#: Of libpq's variables those that say how to prove who we are, and how to know the server.
#: https://www.postgresql.org/docs/current/libpq-envars.html
PASSED_ON = frozenset(
    ("PGPASSFILE", "PGPASSWORD", "PGSSLMODE", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL",
     "PGSSLCRLDIR", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGKRBSRVNAME",
     "PGGSSLIB", "PGREQUIREAUTH", "PGCHANNELBINDING")
)  # fmt: skip

#: What libpq takes for some of them: one word of a list, or several.
_LIBPQ_WORDS = {
    "PGSSLMODE": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "PGCHANNELBINDING": ("disable", "prefer", "require"),
    "PGSSLMINPROTOCOLVERSION": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "PGSSLMAXPROTOCOLVERSION": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "PGREQUIREAUTH": ("password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"),
}

#: Variables that would lead relay and workers to another broker than the one configured. Somebody
#: set them for Celery, so that they are refused and not ignored.
REFUSED = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_CONFIG_MODULE",
    "CELERY_LOADER",
)
_KEPT_OUT = re.compile(
    r"PG[A-Z]+|CELERY_\w+|CELERYD_\w+|FLOWER_\w+|DJANGO_SETTINGS_MODULE|FORKED_BY_MULTIPROCESSING"
    r"|WEB_CONCURRENCY|UVICORN_\w+|PROMETHEUS_MULTIPROC_DIR|prometheus_multiproc_dir"
)

#: What Kubernetes tells every pod of a Service called turnmill or turnmill-…, and Docker of a link:
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE = re.compile(
    r"TURNMILL(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"TURNMILL(_[A-Z0-9]+)*_PORT")
_SERVICE_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def without_strangers(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the TURNMILL_ variables that nobody gave.

    Those that are empty, as Compose leaves them for `${NAME:-}`, and those of Kubernetes' Services.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(PREFIX) or (value.strip() and not _is_service(name, value))
    }


def _is_service(name: str, value: str) -> bool:
    if _SERVICE.fullmatch(name):
        return True
    return bool(_SERVICE_PORT.fullmatch(name) and _SERVICE_PORT_VALUE.fullmatch(value))


def settle_in() -> None:
    """Make the process of a command independent of its surroundings, before libraries look."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An 8-bit terminal shows what it can.
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")
    keep_out_foreign_variables(os.environ)
    _name_the_account(os.environ)


def keep_out_foreign_variables(environ: MutableMapping[str, str]) -> None:
    for name in list(environ):
        if _KEPT_OUT.fullmatch(name) and name not in PASSED_ON and name not in REFUSED:
            del environ[name]
    # Where both are there, libraries read the first one; most people set only the second.
    given = environ.get("no_proxy") or environ.get("NO_PROXY", "")
    listed = [host for host in given.split(",") if host.strip()]
    listed += [host for host in _LOOPBACK if host not in listed]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(listed)


def _name_the_account(environ: MutableMapping[str, str]) -> None:
    """Containers run under ids that no account has; libraries ask for its name, and fail."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        environ.setdefault("LOGNAME", "turnmill")


def home() -> Path | None:
    """None: there is no HOME, and no account that has one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def refuse_undecodable(arguments: list[str]) -> None:
    """Raises `InvalidInput` if an argument is no text: nothing could store or print it."""
    for number, argument in enumerate(arguments, start=1):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise InvalidInput(
                f"Argument {number} is not valid {sys.getfilesystemencoding().upper()}. Convert "
                "the text, or rename the file (iconv and convmv do)."
            )


def refuse_foreign_settings(environ: Mapping[str, str] = os.environ) -> None:
    """Raises `SettingsError` if a variable of Celery's own would overrule ours."""
    if given := [name for name in REFUSED if environ.get(name)]:
        raise SettingsError(
            f"{', '.join(given)} would overrule Turnmill's settings. Remove it from the "
            "environment; the broker is TURNMILL_BROKER__URL."
        )


def refuse_unreadable_credentials(environ: Mapping[str, str] = os.environ) -> None:
    """Raises `SettingsError` for a variable passed on to libpq that it would stumble over."""
    for name, words in _LIBPQ_WORDS.items():
        given = environ.get(name, "")
        is_list = name == "PGREQUIREAUTH"
        each = [word.strip().removeprefix("!") for word in given.split(",")] if is_list else [given]
        if given and not {word.lower() for word in each} <= {word.lower() for word in words}:
            raise SettingsError(
                f"{name} is not what PostgreSQL's library takes ({', '.join(words)}). Correct it, "
                "or remove it from the environment."
            )
