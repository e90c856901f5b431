"""Where files are kept, as one URL: which store it means, and what is wrong with it."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store

from safelight.errors import Invalid
from safelight.storage.trouble import StorageUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig  # not there at run time

RemoteStore = S3Store | GCSStore | AzureStore
AnyStore = LocalStore | MemoryStore | RemoteStore

FORMS = (
    "file:///a/folder, memory:///, s3://bucket/prefix?endpoint=https://...&region=..., gs://bucket/prefix or "
    "az://container/prefix?account=..."
)
OPTIONS = {"s3": {"endpoint", "region"}, "gs": set[str](), "az": {"account", "endpoint"}}
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
PREFIX = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(?:/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*")
R2_HOST = ".r2.cloudflarestorage.com"
# A request that fails is tried again for a while inside one call; callers have patience of their own beyond that. The
# whole-request limit must not cut off a long download: a store that falls silent is noticed by the read timeout.
RETRY: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
CLIENT: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "1h"}


@dataclass(frozen=True, slots=True)
class Address:
    """A place for files without its secrets. `bucket` is the folder for `file`, and empty for `memory`."""

    scheme: str
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None

    def __str__(self) -> str:
        """In words that may be shown to anybody."""
        if self.scheme == "memory":
            return "memory"
        if self.scheme == "file":
            return self.bucket
        place = f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        return f"{place} at {self.endpoint}" if self.endpoint else place

    @property
    def is_remote(self) -> bool:
        """Whether it is an object store, which keeps content types and signs links itself."""
        return self.scheme in OPTIONS


def parse_address(url: str) -> Address:
    """Read a storage URL. Raises `Invalid` with a sentence that says what is wrong, and never repeats a secret."""
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        raise Invalid("storage_url is not a URL.") from None
    if user or password or "@" in parts.netloc:
        raise Invalid(
            "storage_url must not hold keys. Set SAFELIGHT_STORAGE_ACCESS_KEY and SAFELIGHT_STORAGE_SECRET_KEY."
        )
    if parts.scheme == "memory":
        return Address("memory", "")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise Invalid("storage_url: a folder is written with three slashes, as in file:///a/folder.")
        return Address("file", unquote(parts.path))
    if parts.scheme not in OPTIONS:
        raise Invalid(f"storage_url must be one of these: {FORMS}.")
    bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
    if BUCKET.fullmatch(bucket) is None:
        raise Invalid(
            f"storage_url: {bucket[:70]!r} is not the name of a bucket; write {parts.scheme}://bucket/prefix."
        )
    if prefix and (len(prefix) > 200 or PREFIX.fullmatch(prefix) is None):
        raise Invalid(f"storage_url: the prefix {prefix[:70]!r} must be a path of plain names.")
    options = _options(parts.scheme, parts.query)
    endpoint = options.get("endpoint")
    if endpoint is not None:
        endpoint = _endpoint(endpoint)
    region = options.get("region")
    if endpoint is not None and endpoint.endswith(R2_HOST):
        region = region or "auto"
    return Address(parts.scheme, bucket, prefix, endpoint, region, options.get("account"))


def _options(scheme: str, query: str) -> dict[str, str]:
    known = OPTIONS[scheme]
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            known_names = f"It may have {' and '.join(sorted(known))}." if known else "It takes none."
            hint = " Keys belong into settings of their own." if re.search("key|secret|token|sig", name, re.I) else ""
            raise Invalid(f"storage_url has an unknown option {name[:40]!r}. {known_names}{hint}")
        if not value or name in found:
            raise Invalid(f"storage_url: {name} must be given once, with a value.")
        found[name] = value
    return found


def _endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_good = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
        is_good = is_good and parts.port != 0 and "@" not in parts.netloc and parts.path in {"", "/"}
    except ValueError:
        is_good = False
    if not is_good:
        raise Invalid(
            "storage_url: the endpoint must be an address alone, as in endpoint=https://storage.example.com, without "
            "the bucket, a path or keys."
        )
    return value.rstrip("/")


def open_store(address: Address, access_key: str = "", secret_key: str = "") -> AnyStore:
    """The store at this address. A folder is made if missing; of a bucket nothing is asked yet."""
    match address.scheme:
        case "memory":
            return MemoryStore()
        case "file":
            folder = Path(address.bucket)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"The storage folder {folder} cannot be made: {error.strerror}.") from error
            return LocalStore(folder, automatic_cleanup=True)
        case "s3":
            return _opened(address, lambda: _open_s3(address, access_key, secret_key))
        case "gs":
            return _opened(address, lambda: _open_gcs(address, secret_key))
        case _:
            return _opened(address, lambda: _open_azure(address, access_key, secret_key))


def _opened(address: Address, make: Callable[[], RemoteStore]) -> RemoteStore:
    try:
        return make()
    except (BaseError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        reason = first.rpartition("error: ")[2] if "Account" in first else type(error).__name__
        raise Invalid(f"storage_url: {address} cannot be opened ({reason}).") from None


def _open_s3(address: Address, access_key: str, secret_key: str) -> S3Store:
    if bool(access_key) != bool(secret_key):
        raise Invalid("SAFELIGHT_STORAGE_ACCESS_KEY and SAFELIGHT_STORAGE_SECRET_KEY must be set together.")
    has_keys = access_key or any(
        os.environ.get(name)
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    )
    if address.endpoint is not None and not has_keys:  # elsewhere than at AWS no machine has a role
        raise Invalid(
            f"There are no keys for {address}. Set SAFELIGHT_STORAGE_ACCESS_KEY and SAFELIGHT_STORAGE_SECRET_KEY."
        )
    config: dict[str, str] = {}
    if access_key:
        config |= {"access_key_id": access_key, "secret_access_key": secret_key}
    client = CLIENT
    if address.endpoint is not None:
        # Both, or a variable of the environment would win over the URL.
        config |= {"endpoint": address.endpoint, "aws_endpoint_url_s3": address.endpoint}
        client = {**CLIENT, "allow_http": address.endpoint.startswith("http://")}
    if address.region is not None:
        config["region"] = address.region
    prefix = address.prefix or None
    return S3Store(address.bucket, prefix=prefix, client_options=client, retry_config=RETRY, **config)  # pyright: ignore[reportArgumentType]


def _open_gcs(address: Address, secret_key: str) -> GCSStore:
    """`secret_key` is the JSON of a service account's key; without it Google's own variables are looked at."""
    prefix = address.prefix or None
    if secret_key:
        return GCSStore(
            address.bucket, prefix=prefix, client_options=CLIENT, retry_config=RETRY, service_account_key=secret_key
        )
    return GCSStore(address.bucket, prefix=prefix, client_options=CLIENT, retry_config=RETRY)


def _open_azure(address: Address, access_key: str, secret_key: str) -> AzureStore:
    """`access_key` is the account, unless the URL names it, and `secret_key` its key."""
    config: dict[str, str] = {}
    if account := address.account or access_key:
        config["account_name"] = account
    if secret_key:
        config["account_key"] = secret_key
    client = CLIENT
    if address.endpoint is not None:
        config["endpoint"] = address.endpoint
        client = {**CLIENT, "allow_http": address.endpoint.startswith("http://")}
    prefix = address.prefix or None
    return AzureStore(address.bucket, prefix=prefix, client_options=client, retry_config=RETRY, **config)  # pyright: ignore[reportArgumentType]
