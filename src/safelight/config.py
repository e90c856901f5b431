"""Settings, read once from the environment (`SAFELIGHT_*`) by bootstrap, cli, supervisor and migrations alone.

`APP_ENV` chooses `dev`, `demo`, `test` or `production` and with it the Redis database number and namespace;
every value can be set on its own. `AI_MOCK_MODE` is read without the prefix.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Environment = Literal["dev", "demo", "test", "production"]
REDIS_DATABASES: dict[Environment, int] = {"dev": 4, "demo": 2, "test": 3, "production": 0}


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

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    max_body_bytes: int = 1024 * 1024

    default_provider: str = "mock"
    provider_limits: dict[str, int] = {}  # jobs at once per provider, counted from processing rows
    owner_limit: int | None = None  # jobs at once per owner

    soft_limit_seconds: float = Field(300, gt=0)
    hard_limit_seconds: float = Field(330, gt=0)
    max_retries: int = Field(3, ge=0, le=20)
    retry_seconds: float = Field(5, gt=0)  # before the first retry; doubled for each further, times 0.8-1.2
    lease_seconds: float = Field(30, gt=0)
    beat_seconds: float = Field(5, gt=0)
    rehint_seconds: float = Field(5, gt=0)  # first wait before an unclaimed hint is sent again
    drain_seconds: float = Field(20, ge=0)  # how long a worker lets running jobs finish after SIGTERM
    stuck_loop_seconds: float = Field(30, gt=0)  # a loop that stands still this long ends its process
    io_slots: int = Field(1000, ge=1)
    local_slots: int = Field(2, ge=1)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @model_validator(mode="after")
    def fill_in(self) -> Self:
        """Values that follow from others, and combinations that cannot work."""
        if self.mock_mode is None:
            if self.env == "production":
                raise ValueError("AI_MOCK_MODE must be set to true or false in production")
            self.mock_mode = True
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data_dir.resolve() / 'safelight.db'}"
        elif self.database_url.startswith(("postgres://", "postgresql://")):
            self.database_url = "postgresql+psycopg://" + self.database_url.split("://", 1)[1]
        if not self.redis_ns:
            self.redis_ns = f"safelight-{self.env}"
        if not self.storage_url:
            self.storage_url = (self.data_dir.resolve() / "files").as_uri()
        if self.hard_limit_seconds <= self.soft_limit_seconds:
            raise ValueError("hard_limit_seconds must be greater than soft_limit_seconds")
        if self.lease_seconds < 3 * self.beat_seconds:
            raise ValueError("lease_seconds must be at least three times beat_seconds")
        return self

    @property
    def redis_database(self) -> int:
        """The Redis database number of this environment, used where `redis_url` names none."""
        return REDIS_DATABASES[self.env]
