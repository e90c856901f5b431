"""Settings, read once from the environment (`SAFELIGHT_*`) by bootstrap, cli, supervisor and migrations alone.

`APP_ENV` chooses `dev`, `demo`, `test` or `production` and with it the Redis database number and namespace;
every value can be set on its own. `AI_MOCK_MODE` is read without the prefix.
"""

import json
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Environment = Literal["dev", "demo", "test", "production"]
OPENAI_URL = "https://api.openai.com/v1"
DATA_DIR_REMEDY = "name another one with --data-dir or SAFELIGHT_DATA_DIR"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MIN_JWT_SECRET_BYTES = 32  # less can be guessed from any one token, offline
PREFIX_PATTERN = r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,99}){1,10}"  # the path of an installation below a host
OUR_PATHS = ("/api/v1", "/health", "/webhooks")
ORIGIN_PATTERN = r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"  # as browsers write it
REDIS_DATABASES: dict[Environment, int] = {"dev": 4, "demo": 2, "test": 3, "production": 0}


class Tier(BaseModel):
    """What those may do who have it; None means no limit. `models` are the defaults of providers by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, str] = {}
    weight: int = Field(1, ge=1, le=100)  # so many jobs of an owner go in one turn of those who wait
    jobs_at_once: int | None = Field(None, ge=1)  # more wait, with the reason `owner_limit`
    submits_per_minute: int | None = Field(None, ge=1)  # more are refused with 429
    retention_days: int | None = Field(None, ge=1)


class Rate(BaseModel):
    """So many in so many seconds. Written as a number (a minute) or as `jobs/seconds`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: int = Field(ge=1)
    seconds: int = Field(60, ge=1, le=86400)

    @model_validator(mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        """`60`, `"60"` or `"5/10"`."""
        if isinstance(value, int):
            return {"jobs": value}
        if isinstance(value, str):
            jobs, _, seconds = value.partition("/")
            return {"jobs": jobs, "seconds": seconds or 60}
        return value


class Settings(BaseSettings):
    """Everything that can be set. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="SAFELIGHT_", extra="ignore", populate_by_name=True)

    env: Environment = Field("dev", validation_alias=AliasChoices("APP_ENV", "SAFELIGHT_ENV"))
    mock_mode: bool | None = Field(None, validation_alias=AliasChoices("AI_MOCK_MODE", "SAFELIGHT_MOCK_MODE"))

    data_dir: Path = Path(".safelight")
    database_url: str = ""  # default: SQLite in data_dir
    redis_url: SecretStr = SecretStr("")  # default: the embedded server that `safelight up` starts
    redis_ns: str = ""  # default: safelight-<env>
    storage_url: str = ""  # default: data_dir/files
    storage_access_key: SecretStr = SecretStr("")  # of an object store; default: what its own variables say
    storage_secret_key: SecretStr = SecretStr("")
    storage_delivery: Literal["proxy", "presigned", "public"] = "proxy"
    storage_public_url: str = ""  # under which a public bucket shows the files
    storage_link_seconds: int = Field(3600, ge=60, le=7 * 24 * 3600)  # how long a presigned delivery lives
    signing_key: SecretStr = SecretStr("")  # of links to files; default: a file in data_dir

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    max_body_bytes: int = 1024 * 1024
    max_batch_bytes: int = Field(8 * 1024 * 1024, ge=1)  # of a batch of jobs, which is read whole
    max_body_values: int = Field(100_000, ge=100)  # in the JSON of a request: objects, lists, texts, numbers
    max_held_bytes: int = Field(64 * 1024 * 1024, ge=1)  # of bodies that are being read or checked, in one process
    max_upload_bytes: int = Field(25 * 1024 * 1024, ge=1)
    max_waiting_uploads: int = Field(16, ge=0)  # to be decoded, in a process: large ones, and as many small ones
    max_picture_pixels: int = Field(64_000_000, ge=1)  # of a picture or a video's frame, from wherever it comes
    picture_threads: int = Field(2, ge=1)  # of a process, that decode and shrink pictures
    large_picture_threads: int = Field(1, ge=1)  # for large ones, which small ones never wait for
    large_picture_pixels: int = Field(8_000_000, ge=1)  # from which on a picture is large
    max_connections: int = Field(10_000, ge=1)  # at once, of one process
    max_head_bytes: int = Field(64 * 1024, ge=1024)  # of a request: its first line and its headers
    head_seconds: float = Field(10, gt=0)  # for a head to arrive
    body_seconds: float = Field(30, gt=0)  # for a body to arrive, and more by the next
    body_bytes_per_second: int = Field(16 * 1024, ge=1)  # a body may take a second longer for so many
    keep_alive_seconds: int = Field(65, ge=1)  # that a connection may be idle between two requests
    allowed_hosts: list[str] = []  # names this service is called by, beside loopback's; "*" with accounts only
    root_path: str = ""  # that a proxy serves this below, as in /safelight
    trusted_proxies: Annotated[list[IPv4Network | IPv6Network], NoDecode] = [  # whose X-Forwarded-* are believed
        IPv4Network("127.0.0.0/8"),
        IPv6Network("::1/128"),
    ]
    cors_origins: Annotated[list[str], NoDecode] = []  # whose pages may use the API from a browser

    auth: Literal["local", "required"] = "local"  # local: no accounts, reachable from this machine only
    jwt_secret: SecretStr = SecretStr("")  # of the identity provider, for HS256
    jwt_jwks_url: str = ""  # its published keys, for RS256, ES256 and EdDSA
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_leeway_seconds: float = Field(10, ge=0, le=300)
    session_hours: float = Field(12, gt=0, le=24 * 90)
    tiers: dict[str, Tier] = {
        "free": Tier.model_validate({"jobs_at_once": 2, "submits_per_minute": 30}),
        "pro": Tier.model_validate({"jobs_at_once": 20, "submits_per_minute": 600}),
    }
    default_tier: str = "free"

    comfyui_urls: Annotated[list[str], NoDecode] = ["http://127.0.0.1:8188"]  # comma-separated
    comfyui_headers: dict[str, SecretStr] = {}  # sent with every request and socket
    comfyui_checkpoint: str = ""  # for requests that name none
    comfyui_templates: Path | None = None  # a folder of workflow templates for everybody
    modelslab_key: SecretStr = SecretStr("")
    modelslab_base_url: str = "https://modelslab.com/api"
    modelslab_models: dict[str, str] = {}  # by tier; the first is the default
    modelslab_resubmit_unknown: bool = False  # submit again where nobody knows whether the first was taken
    modelslab_webhook_url: str = ""  # of this service, as ModelsLab reaches it, with the webhook secret at its end
    openai_key: SecretStr = SecretStr("")
    openai_base_url: str = OPENAI_URL
    openai_model: str = "gpt-image-2"
    openai_models: list[str] | None = None  # the only ones that may be asked for; None: any
    openai_streams: bool = True  # False for servers that refuse to stream
    media_soft_limit_seconds: float = Field(3600, gt=0)
    media_hard_limit_seconds: float = Field(3660, gt=0)
    media_max_bytes: int = Field(4 * 1024**3, ge=1)  # of a file that is imported
    media_max_seconds: float = Field(4 * 3600, gt=0)  # that it plays
    media_idle_seconds: float = Field(30, gt=0)  # without a byte, after which its source has broken off
    media_min_bytes_per_second: float = Field(1000, ge=0)  # on average over media_slow_seconds; 0: however slow
    media_slow_seconds: float = Field(60, gt=0)
    media_probe_seconds: float = Field(20, gt=0)  # that a look may take
    media_memory_bytes: int = Field(1024**3, ge=256 * 1024**2)  # of each program that reads videos and pages
    media_allow_private: Annotated[list[IPv4Network | IPv6Network], NoDecode] = []  # comma-separated
    media_extractors: Annotated[list[str], NoDecode] = []  # of yt-dlp, comma-separated; none: all that lead to media
    media_keep_free_bytes: int = Field(1024**3, ge=0)  # of the worker's disk
    media_quota_bytes: int | None = Field(None, ge=1)  # of unfinished imports together; None: what the disk has

    webhook_secret: SecretStr = SecretStr("")  # in the address of inbound webhooks; none: they are not taken

    default_provider: str = ""  # or route; none: the mock in mock mode, else the only one that is configured
    routes: dict[str, list[str]] = {}  # names for lists of providers to try in turn
    provider_limits: dict[str, int] = {}  # jobs at once per provider, counted from processing rows
    provider_rates: dict[str, Rate] = {}  # jobs started per provider: 60 (a minute) or "5/10" (in 10 s)
    breaker_failures: int = Field(5, ge=0)  # in a row, after which a provider is left alone; 0: never
    breaker_seconds: float = Field(15, gt=0)  # until it is tried again
    provider_wait_seconds: float = Field(900, ge=0)  # that jobs wait for one that cannot be reached
    owner_limit: int | None = None  # jobs at once per owner

    retention_days: int | None = Field(None, ge=0)  # how long ended jobs and pictures are kept; None: for ever
    tombstone_days: int | None = Field(None, ge=1)  # how long what was deleted stays known as such; None: for ever

    soft_limit_seconds: float = Field(300, gt=0)
    hard_limit_seconds: float = Field(330, gt=0)
    max_retries: int = Field(3, ge=0, le=20)
    retry_seconds: float = Field(5, gt=0)  # before the first retry; doubled for each further, times 0.8-1.2
    lease_seconds: float = Field(30, gt=0)
    beat_seconds: float = Field(5, gt=0)
    rehint_seconds: float = Field(5, gt=0)  # first wait before an unclaimed hint is sent again
    start_seconds: float = Field(300, gt=0)  # how long `up` waits for each of its parts, and for a Redis that is named
    drain_seconds: float = Field(20, ge=0)  # how long a worker lets running jobs finish after SIGTERM
    stuck_loop_seconds: float = Field(30, gt=0)  # a loop that stands still this long ends its process
    io_slots: int = Field(1000, ge=1)
    local_slots: int = Field(2, ge=1)
    import_slots: int = Field(2, ge=1)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @field_validator(
        "comfyui_urls", "media_allow_private", "media_extractors", "trusted_proxies", "cors_origins", mode="before"
    )
    @classmethod
    def split(cls, value: Any) -> Any:
        """Comma-separated as people write it, or JSON, as a parent process does."""
        if not isinstance(value, str):
            return value
        return (
            json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(",") if part.strip()]
        )

    @model_validator(mode="after")
    def fill_in(self) -> Self:
        """Values that follow from others, and combinations that cannot work."""
        if self.mock_mode is None:
            if self.env == "production":
                raise ValueError("AI_MOCK_MODE must be set to true or false in production")
            self.mock_mode = True
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data_dir.resolve() / 'safelight.db'}"
        if not self.redis_ns:
            self.redis_ns = f"safelight-{self.env}"
        if not self.storage_url:
            self.storage_url = (self.data_dir.resolve() / "files").as_uri()
        if self.storage_delivery == "public" and not self.storage_public_url.startswith(("https://", "http://")):
            raise ValueError("storage_delivery=public needs storage_public_url, as in https://pictures.example.com")
        if 0 < len(self.signing_key.get_secret_value()) < 32:
            raise ValueError("signing_key must have at least 32 characters")
        if 0 < len(self.webhook_secret.get_secret_value()) < 16:
            raise ValueError("webhook_secret must have at least 16 characters")
        if not self.comfyui_urls or not all(urlsplit(url).scheme in ("http", "https") for url in self.comfyui_urls):
            raise ValueError("comfyui_urls must name servers, as in http://gpu-1:8188,http://gpu-2:8188")
        # ComfyUI: at most two jobs inside one server, the rest wait here. ModelsLab refuses more than its queue holds.
        if not self.mock_mode:
            self.provider_limits = {"comfyui": 2 * len(self.comfyui_urls), "modelslab": 5} | self.provider_limits
        if self.hard_limit_seconds <= self.soft_limit_seconds:
            raise ValueError("hard_limit_seconds must be greater than soft_limit_seconds")
        if self.media_hard_limit_seconds <= self.media_soft_limit_seconds:
            raise ValueError("media_hard_limit_seconds must be greater than media_soft_limit_seconds")
        if self.lease_seconds < 3 * self.beat_seconds:
            raise ValueError("lease_seconds must be at least three times beat_seconds")
        self._check_accounts()
        self._check_addresses()
        for name, providers in self.routes.items():
            if not providers or len(set(providers)) < len(providers):
                raise ValueError(f"routes: {name} must name one or more providers, each once")
        return self

    def _check_accounts(self) -> None:
        for tier, model in self.modelslab_models.items():
            if tier not in self.tiers:
                raise ValueError(f"modelslab_models: there is no tier {tier!r}; there are {', '.join(self.tiers)}")
            models = {"modelslab": model} | self.tiers[tier].models
            self.tiers = self.tiers | {tier: self.tiers[tier].model_copy(update={"models": models})}
        if self.default_tier not in self.tiers:
            raise ValueError(f"default_tier: there is no tier {self.default_tier!r}; there are {', '.join(self.tiers)}")
        if self.auth == "local" and "*" in self.allowed_hosts:
            raise ValueError("allowed_hosts may be * only with auth=required: else any page could reach this service")
        secret = self.jwt_secret.get_secret_value()
        if secret and len(secret.encode()) < MIN_JWT_SECRET_BYTES:
            raise ValueError(f"jwt_secret must have at least {MIN_JWT_SECRET_BYTES} bytes")
        if (secret or self.jwt_jwks_url) and not self.jwt_audience:
            raise ValueError("jwt_audience must be set: a token for another service must not open this one")
        if self.jwt_jwks_url:
            if not self.jwt_issuer:
                raise ValueError("jwt_issuer must be set with jwt_jwks_url")
            url = urlsplit(self.jwt_jwks_url)
            is_near = url.hostname in LOOPBACK or self.env != "production"
            if url.scheme != "https" and not (url.scheme == "http" and is_near):
                raise ValueError("jwt_jwks_url must begin with https://, so that nobody can slip in other keys")

    def _check_addresses(self) -> None:
        self.root_path = self.root_path.rstrip("/")
        if self.root_path and not re.fullmatch(PREFIX_PATTERN, self.root_path):
            raise ValueError(f"root_path must be a path such as /safelight, not {self.root_path!r}")
        if self.root_path.startswith(OUR_PATHS):
            raise ValueError(f"root_path may not begin as the API's own paths do ({', '.join(OUR_PATHS)})")
        for origin in self.cors_origins:
            if not re.fullmatch(ORIGIN_PATTERN, origin):
                raise ValueError(
                    f"cors_origins: {origin!r} is no origin; name each one exactly, in lower case, as scheme, host and "
                    "perhaps port, without a path, as in https://app.example.com or http://localhost:3000"
                )
            if origin.endswith(":443" if origin.startswith("https:") else ":80"):
                raise ValueError(f"cors_origins: browsers leave the usual port out: {origin.rpartition(':')[0]}")

    @property
    def redis_database(self) -> int:
        """The Redis database number of this environment, used where `redis_url` names none."""
        return REDIS_DATABASES[self.env]

    @property
    def missing(self) -> dict[str, str]:
        """By provider, the variable without which it is not configured; empty if it is set.

        ComfyUI's default address is for those who name the provider. A server like OpenAI's may need no key.
        """
        is_openai = self.openai_base_url.rstrip("/") == OPENAI_URL
        return {
            "comfyui": "" if "comfyui_urls" in self.model_fields_set else "SAFELIGHT_COMFYUI_URLS",
            "modelslab": "" if self.modelslab_key else "SAFELIGHT_MODELSLAB_KEY",
            "openai_images": "" if self.openai_key or not is_openai else "SAFELIGHT_OPENAI_KEY",
        }

    @property
    def played(self) -> list[str]:
        """The providers that are configured, and played by the mock all the same."""
        return [name for name, variable in self.missing.items() if not variable] if self.mock_mode else []

    @property
    def has_accounts(self) -> bool:
        """Whether everybody has to say who they are."""
        return self.auth == "required"
