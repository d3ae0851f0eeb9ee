"""Calls of S3's API through botocore, AWS's own library; its errors are translated here."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypedDict

from turnmill.schemas.errors import SettingsError, StorageUnavailable
from turnmill.schemas.settings import S3Settings

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

try:
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NotConnected
except ModuleNotFoundError:
    raise SettingsError(
        "TURNMILL_FILES__STORAGE=s3 needs a library: pip install 'turnmill[s3]'."
    ) from None

#: A first connection is made, or fails, within this time; seconds.
_CONNECT_TIMEOUT_S = 5.0
_ATTEMPTS = 2
#: Threads of a process that read and write at once without waiting for each other.
_CONNECTIONS = 32

GRANT = (
    "grant s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket, and where the bucket "
    "keeps versions s3:ListBucketVersions and s3:DeleteObjectVersion; object lock must be off"
)
_KEYS = "look at TURNMILL_S3__ACCESS_KEY and TURNMILL_S3__SECRET_KEY, or at AWS's usual sources"
_REGION = "set TURNMILL_S3__REGION to the bucket's region"
_REACH = "does the server run, and does TURNMILL_S3__ENDPOINT lead to it?"
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or name another one in TURNMILL_S3__BUCKET",
    "AccessDenied": GRANT,
    "403": GRANT,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _KEYS,
    "NoCredentialsError": _KEYS,
    "PartialCredentialsError": _KEYS,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "301": _REGION,
}
_GONE = ("NoSuchKey", "404")
#: The owner's object is there, or somebody else is just writing it.
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")
#: Servers without versions, as Cloudflare's R2, do not know the call.
UNKNOWN = ("NotImplemented", "MethodNotAllowed", "501", "405")
DENIED = ("AccessDenied", "403")


class Stream(Protocol):
    """The body of an answer."""

    def read(self, amt: int | None = None) -> bytes: ...

    def close(self) -> None: ...


class Listed(TypedDict):
    """An object in a listing."""

    Key: str
    LastModified: datetime


class Version(TypedDict, total=False):
    """A version of an object; without a size, the mark that it was deleted."""

    Key: str
    VersionId: str
    Size: int


class Answer(TypedDict, total=False):
    """What is read of answers:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
    """

    Body: Stream
    LastModified: datetime
    DeleteMarker: bool
    VersionId: str
    Contents: list[Listed]
    Versions: list[Version]
    DeleteMarkers: list[Version]
    IsTruncated: bool
    NextContinuationToken: str
    NextKeyMarker: str
    NextVersionIdMarker: str


class _Meta(Protocol):
    endpoint_url: str


class _Client(Protocol):
    meta: _Meta


class Calls:
    """The API, for one bucket. Threads may share it."""

    def __init__(self, settings: S3Settings, bucket: str) -> None:
        self._settings = settings
        self._bucket = bucket

    def call(self, operation: str, **given: object) -> Answer:
        """Call the API. Raises `StorageUnavailable`."""
        with _translated(operation):
            return self._operation(operation)(Bucket=self._bucket, **given)

    def find(self, operation: str, **given: object) -> Answer | None:
        """Call the API; None: there is no such object. Raises `StorageUnavailable`."""
        with _translated(operation):
            try:
                return self._operation(operation)(Bucket=self._bucket, **given)
            except ClientError as error:
                if _code(error) in _GONE:
                    return None
                raise

    def attempt(self, operation: str, expected: tuple[str, ...], **given: object) -> str | None:
        """Call the API; return None, or the code of an error that is expected. Raises
        `StorageUnavailable`.
        """
        with _translated(operation):
            try:
                self._operation(operation)(Bucket=self._bucket, **given)
            except ClientError as error:
                if _code(error) in expected:
                    return _code(error)
                raise
        return None

    def _operation(self, name: str) -> Callable[..., Answer]:
        if self._is_led_elsewhere:
            # Neither followed nor passed over in silence: files would go where nobody meant them.
            raise StorageUnavailable(
                "AWS_ENDPOINT_URL…, or endpoint_url in AWS's configuration file, names another "
                "server for the bucket of files.",
                "write it, or AWS's own address, into TURNMILL_S3__ENDPOINT, or remove it; then "
                "start this process again",
            )
        operation: Callable[..., Answer] = getattr(self._client, name)
        return operation

    @cached_property
    def _client(self) -> _Client:
        """Made when it is first needed: most processes read no file."""
        return self._made(follows_aws=False)

    @cached_property
    def _is_led_elsewhere(self) -> bool:
        """Whether AWS's own settings name another server, and ours none. Clients are dear:
        this is found out once.
        """
        if self._settings.endpoint is not None:
            return False
        led = self._made(follows_aws=True)
        return led.meta.endpoint_url != self._client.meta.endpoint_url

    def _made(self, *, follows_aws: bool) -> _Client:
        """`follows_aws`: to whatever server AWS's own settings name."""
        settings = self._settings
        secrets = settings.access_key, settings.secret_key
        access_key, secret_key = (each and each.get_secret_value() for each in secrets)
        endpoint = settings.endpoint and settings.endpoint.get_secret_value()
        client: _Client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint,
            # Other servers take any region, and this one by default.
            region_name=settings.region or ("us-east-1" if endpoint else None),
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=_configuration(settings, follows_aws=follows_aws),
        )
        return client


class Body(io.RawIOBase):
    """What a `GetObject` answers, as a file."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        with _translated("get_object"):
            data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        with _translated("get_object"):
            return self._stream.read()

    def close(self) -> None:
        self._stream.close()
        super().close()


def _configuration(settings: S3Settings, *, follows_aws: bool) -> Config:
    """AWS's own settings may choose its hosts for FIPS, IPv6 and acceleration. Servers of others
    have none, and botocore refuses to call those then.
    """
    is_aws = settings.endpoint is None
    path_style = not is_aws if settings.path_style is None else settings.path_style
    aws_alone = None if is_aws else False
    return Config(
        connect_timeout=min(_CONNECT_TIMEOUT_S, settings.timeout_s),
        read_timeout=settings.timeout_s,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=_CONNECTIONS,
        # None: as AWS_IGNORE_CONFIGURED_ENDPOINT_URLS says.
        ignore_configured_endpoint_urls=None if follows_aws else True,
        use_fips_endpoint=aws_alone,
        use_dualstack_endpoint=aws_alone,
        # The body's SHA-256 is part of the signature, which every server checks; the newer
        # checksums of AWS are refused by some.
        s3={
            "addressing_style": "path" if path_style else "virtual",
            "payload_signing_enabled": True,
            **({} if is_aws else {"use_accelerate_endpoint": False}),
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Name what was refused, by the server's code: its other words may have keys in them."""
    try:
        yield
    except ClientError as error:
        code = _code(error) or "no reason"
        message = f"The bucket of files refuses {operation}: {code}"
        raise StorageUnavailable(f"{message}.", _REMEDIES.get(code, "")) from None
    except (HTTPClientError, NotConnected) as error:
        kind = type(error).__name__
        raise StorageUnavailable(f"The bucket of files, {operation}: {kind}.", _REACH) from None
    except BotoCoreError as error:
        kind = type(error).__name__
        remedy = _REMEDIES.get(kind, "look at TURNMILL_S3__… and at AWS's own settings")
        raise StorageUnavailable(f"The bucket of files, {operation}: {kind}.", remedy) from None
