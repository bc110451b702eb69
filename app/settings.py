"""Settings, read once from the environment (`LIKENESS_*`) by the CLI and passed down."""

import ipaddress
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.origins import Origin, RootPath


class Device(StrEnum):
    """Where the networks run: `auto` takes a GPU when its provider really starts."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class CpuEngine(StrEnum):
    """What runs the networks on a CPU: `auto` takes the one known to be faster there."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class CpuPrecision(StrEnum):
    """In which numbers networks are computed on a CPU."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    # Of the detector; the other networks in float32.
    INT8 = "int8"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


MIB = 1024 * 1024
MOST_PROCESSES = 64
MOST_WORKERS = 1024  # threads

# Every number has an upper bound that no use reaches, so that what is accepted also fits into the
# numbers of the system and of the libraries.
MOST = 10**12
MOST_BYTES = 10**15
MOST_SECONDS = 365 * 86_400
Count = Annotated[int, Field(gt=0, le=MOST)]
Bytes = Annotated[int, Field(gt=0, le=MOST_BYTES)]
MAX_PHOTO_BYTES = 1024 * MIB  # a buffer of this size is allocated
PhotoBytes = Annotated[int, Field(gt=0, le=MAX_PHOTO_BYTES)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS)]


def _split(value: Any) -> Any:
    """The parts of a comma-separated list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    """All configuration. Every field is an environment variable with the prefix `LIKENESS_`."""

    # Not infinite: a duration without an end is a wait without a deadline.
    model_config = SettingsConfigDict(
        env_prefix="LIKENESS_", extra="ignore", frozen=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty path would be the working folder."""
        if value == "" and cls.model_fields[str(info.field_name)].default not in ("", ()):
            raise ValueError("must not be empty; give it a value or unset the variable")
        return value

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on.")] = 8000
    tls_cert: Annotated[
        Path | None,
        Field(
            description="PEM file of a certificate, followed by those of its issuers: the service "
            "speaks TLS. It is read again when it changes."
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM file of its private key, without a password.")
    ] = None
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        NoDecode,
        BeforeValidator(_split),
        Field(
            description="Addresses and networks of proxies, by commas, whose X-Forwarded-For and "
            "X-Forwarded-Proto are believed."
        ),
    ] = ()
    root_path: Annotated[
        RootPath,
        Field(description="Path under which a proxy publishes the service, such as /faces."),
    ] = ""
    cors_origins: Annotated[
        tuple[Origin, ...], NoDecode, BeforeValidator(_split),
        Field(description="Origins whose pages may call the API, by commas; * for every one."),
    ] = ()  # fmt: skip
    data_dir: Annotated[Path, Field(description="Folder of the database.")] = Path("data")
    database_url: Annotated[
        str | None, Field(description="SQLAlchemy URL; default: likeness.db in the data folder.")
    ] = None
    encryption_key: Annotated[
        SecretStr | None, Field(description="Keys of embeddings at rest, one per line.")
    ] = None
    encryption_key_file: Annotated[Path | None, Field(description="The same, in a file.")] = None
    encryption_key_command: Annotated[
        SecretStr | None, Field(description="The same, printed by a command, run without a shell.")
    ] = None
    access_pepper: Annotated[
        SecretStr | None, Field(description="Secret of the digests of access keys, in base64.")
    ] = None
    first_key_file: Annotated[
        Path | None, Field(description="File of a first access key, made if a start needs one.")
    ] = None
    oidc_issuer: Annotated[
        str | None,
        Field(
            description="OpenID Connect issuer whose bearer tokens are accepted beside access "
            "keys, as https://login.example/realms/main."
        ),
    ] = None
    oidc_audience: Annotated[
        str | None, Field(min_length=1, description="Audience that its tokens must have.")
    ] = None
    oidc_scopes_claim: Annotated[
        str, Field(min_length=1, description="Claim that has the scopes; dots lead into objects.")
    ] = "scope"
    oidc_scopes: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_split),
        Field(
            description="Values of that claim and the scope each gives, as guards=identify, by "
            "commas. Default: likeness:identify gives identify, and so on."
        ),
    ] = ()
    oidc_collections_claim: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Claim that has the only collections a token is for; unset: all.",
        ),
    ] = None
    oidc_requests_per_second: Annotated[
        float | None,
        Field(ge=0.001, le=1e6, description="Requests a second of one subject's tokens."),
    ] = None
    oidc_photos_per_second: Annotated[
        float | None,
        Field(ge=0.001, le=1e6, description="Photos a second of one subject's tokens."),
    ] = None
    oidc_concurrent_requests: Annotated[
        Count | None, Field(description="Requests at a time of one subject's tokens.")
    ] = None
    oidc_photos_per_day: Annotated[
        Count | None, Field(description="Photos a day (UTC) of one subject's tokens.")
    ] = None
    insecure: Annotated[
        bool,
        Field(
            description="Start on an address that others can reach although there was never a key. "
            "Once there is one, every call needs one all the same."
        ),
    ] = False
    pack: Annotated[str, Field(description="Model pack: a name or a folder.")] = "default"
    models_dir: Annotated[
        Path | None,
        Field(description="Folder of installed model packs; default: models in the data folder."),
    ] = None
    device: Annotated[Device, Field(description="auto, cpu or cuda.")] = Device.AUTO
    cpu_engine: Annotated[
        CpuEngine, Field(description="On a CPU: auto, onnxruntime or openvino.")
    ] = CpuEngine.AUTO
    cpu_precision: Annotated[
        CpuPrecision,
        Field(description="On a CPU: auto, fp32, bf16 (needs OpenVINO) or int8 (the detector)."),
    ] = CpuPrecision.AUTO
    cuda_graphs: Annotated[
        bool, Field(description="On a GPU: record a network's run once and replay it.")
    ] = False
    tensorrt: Annotated[
        bool, Field(description="On a GPU: run TensorRT's engines; needs TensorRT's libraries.")
    ] = False
    engine_cache: Annotated[
        Path | None, Field(description="Folder of compiled networks; unset: in the data folder.")
    ] = None
    index_device: Annotated[
        Literal["cpu", "cuda"], Field(description="Where galleries are searched.")
    ] = "cpu"
    max_index_bytes: Annotated[
        Bytes | None,
        Field(
            description="Bytes of memory for all open indexes; beyond it the least recently used "
            "are closed. Default: half of the memory that the process may use.",
        ),
    ] = None
    log_format: Annotated[LogFormat, Field(description="text or json.")] = LogFormat.TEXT
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(_upper),
        Field(description="Lowest level that is logged."),
    ] = "INFO"
    access_log: Annotated[bool, Field(description="Log a line for each answered request.")] = False

    max_image_bytes: Annotated[PhotoBytes, Field(description="Bytes of one photo.")] = 10 * MIB
    max_image_pixels: Annotated[Count, Field(description="Width times height of one photo.")] = (
        40_000_000
    )
    max_image_side: Annotated[Count, Field(description="Pixels of its longer side.")] = 16_384
    max_decode_bytes: Annotated[
        Bytes, Field(description="Bytes of memory for all photos being decoded, estimated.")
    ] = 2048 * MIB
    max_images: Annotated[Count, Field(description="Images in one request.")] = 32
    max_request_bytes: Annotated[
        Bytes, Field(description="Bytes of the body of a call with photos.")
    ] = 64 * MIB
    max_json_bytes: Annotated[
        Bytes, Field(description="Bytes of the body of a call without photos.")
    ] = MIB
    max_faces: Annotated[Count, Field(description="Faces of one image in an answer.")] = 256

    max_import_bytes: Annotated[
        Bytes, Field(description="Of an archive that is uploaded to be imported.")
    ] = 4096 * MIB
    import_timeout: Annotated[
        Seconds,
        Field(
            description="Seconds to upload an archive, to watch an import or read its report, and "
            "for hygiene.",
        ),
    ] = 3600.0
    import_workers: Annotated[
        int | None,
        Field(
            gt=0,
            le=MOST_WORKERS,
            description=(
                "Photos of uploaded imports that are analysed at a time. Unset: half of the "
                "workers."
            ),
        ),
    ] = None
    import_reader_bytes: Annotated[
        int,
        Field(
            ge=128 * MIB, le=MOST_BYTES, description="Bytes of memory to read an uploaded archive."
        ),
    ] = 512 * MIB
    import_report_days: Annotated[
        float,
        Field(
            gt=0,
            le=timedelta.max.days,
            description="How long reports of uploaded imports, which name people, stay.",
        ),
    ] = 30.0

    processes: Annotated[
        Annotated[int, Field(gt=0, le=MOST_PROCESSES)] | Literal["auto"],
        Field(description="Processes that serve; auto: one for each four usable cores."),
    ] = 1
    workers: Annotated[
        int | None,
        Field(gt=0, le=MOST_WORKERS, description="Photos at a time; default: the usable cores."),
    ] = None
    max_pending: Annotated[
        Count, Field(description="Requests processed or queued; further ones get 503.")
    ] = 64
    max_pending_bytes: Annotated[
        Bytes, Field(description="Bytes of bodies and of large answers, together, before 503.")
    ] = 512 * MIB
    request_timeout: Annotated[
        Seconds, Field(description="Seconds until a request is answered with 503.")
    ] = 60.0

    probing_misses: Annotated[
        Count,
        Field(
            description="Misses of one access key or client (unknown faces, wrong claims) within "
            "LIKENESS_PROBING_SECONDS that are reported.",
        ),
    ] = 300
    probing_seconds: Annotated[
        int, Field(gt=0, le=86_400, description="Seconds over which misses are counted.")
    ] = 60

    max_connections: Annotated[
        int, Field(ge=32, le=MOST, description="Connections; fewer if descriptors are scarce.")
    ] = 1024
    keep_alive: Annotated[
        Seconds, Field(description="Seconds that a connection is kept between two requests.")
    ] = 75.0
    head_timeout: Annotated[Seconds, Field(description="Seconds for the head of a request.")] = 10.0
    write_timeout: Annotated[
        Seconds, Field(description="Seconds until a client that reads nothing is disconnected.")
    ] = 30.0
    min_body_rate: Annotated[
        int, Field(ge=0, le=MOST, description="Lowest bytes a second of a body, after 10 s.")
    ] = 1024
    drain_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MOST_SECONDS,
            description="Seconds after SIGTERM in which connections are accepted.",
        ),
    ] = 5.0

    @property
    def installed_packs(self) -> Path:
        """The folder of the packs that did not come with Likeness."""
        return self.models_dir or self.data_dir / "models"

    @property
    def resolved_database_url(self) -> str | Path:
        """The database's URL if one is given, otherwise the path of an SQLite file in the data
        folder: in a URL, what follows a "?" of the path would be the query."""
        if self.database_url:
            return self.database_url
        return (self.data_dir / "likeness.db").absolute()
