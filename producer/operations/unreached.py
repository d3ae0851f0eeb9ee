"""What helps where PostgreSQL or the broker refuses a connection.

Clients hand on the server's words and no code (libpq), or one of several codes (kombu's, redis-py's
and py-amqp's), so the words are looked for as they are in English, the language of servers' logs.
In another language the general advice stands.
"""

from turnmill.schemas.settings import STACK_FILE, Settings

_ANY = "Does it run, and does TURNMILL_DATABASE__URL lead to it?"

_FULL = (
    "All its connections are taken; pg_stat_activity says by whom. Raise max_connections (or a "
    "CONNECTION LIMIT), lower TURNMILL_DATABASE__POOL_SIZE, or put a pooler before it "
    "(docs/deployment.md)."
)
_LOGIN = (
    "The login in TURNMILL_DATABASE__URL is not (or no longer) the role's. Give the new one to "
    "every process, and restart it: a running one keeps the old."
)

STANDBY_REMEDY = (
    "Point TURNMILL_DATABASE__URL at the primary, or list all servers there, with "
    "?target_session_attrs=read-write."
)

#: A part of what PostgreSQL or PgBouncer says, in lower case; and what helps.
_REMEDIES = {
    "connection slots": _FULL,
    "too many clients": _FULL,
    "too many connections": _FULL,
    "no more connections allowed": _FULL,
    "password authentication failed": _LOGIN,
    "no password supplied": _LOGIN,
    "pg_hba.conf": "The server lets this role in from other addresses only, or with TLS only: "
    "mend its pg_hba.conf, or sslmode in TURNMILL_DATABASE__URL.",
    "read-only": STANDBY_REMEDY,
    "during recovery": STANDBY_REMEDY,
    "starting up": "It starts, and lets everybody in when it is ready.",
    "shutting down": "It is being stopped. Who does that, and does it start again?",
    "certificate": "The certificate has expired or is another server's: renew it, or mend "
    "sslrootcert in TURNMILL_DATABASE__URL.",
}


_BROKER_LOGIN = (
    "The login in TURNMILL_BROKER__URL is not (or no longer) the broker's. Give the new one to "
    "every process, and restart it: a running one keeps the old."
)

#: The same for RabbitMQ, Redis and Valkey.
_BROKERS_REMEDIES = {
    "access_refused": _BROKER_LOGIN,
    "authentication": _BROKER_LOGIN,
    "wrongpass": _BROKER_LOGIN,
    "invalid username-password": _BROKER_LOGIN,
    "invalid password": _BROKER_LOGIN,
    "vhost": "Create the virtual host and its permissions (rabbitmqctl add_vhost, "
    "set_permissions), or mend the end of TURNMILL_BROKER__URL.",
    "certificate": "The certificate has expired, or nobody that this machine trusts has signed it: "
    "renew it, or add its issuer to the machine's certificates.",
    "max number of clients": "All its connections are taken: raise maxclients. CLIENT LIST says by "
    "whom.",
    "loading": "It reads its data after a start, and lets everybody in when it has.",
}


def broker_remedy_for(message: str) -> str:
    """Say what helps against an error of a connection to the broker, by what it says."""
    said = message.lower()
    found = (remedy for part, remedy in _BROKERS_REMEDIES.items() if part in said)
    return next(found, "Does it run, and does TURNMILL_BROKER__URL lead to it?")


def remedy_for(message: str) -> str:
    """Say what helps against an error of a connection to PostgreSQL, by what it says."""
    said = message.lower()
    if 'database "' in said and "does not exist" in said:
        return "Create the database (README, 'On real servers'), or mend TURNMILL_DATABASE__URL."
    return next((remedy for part, remedy in _REMEDIES.items() if part in said), _ANY)


def is_configured(settings: Settings) -> bool:
    """Whether somebody has said which PostgreSQL it is, or an embedded stack has."""
    return settings.database != type(settings.database)() or (settings.data / STACK_FILE).exists()
