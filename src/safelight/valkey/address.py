"""Where Redis is and how to enter: the URLs that redis-py and Celery know."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from safelight.errors import Invalid

TCP = ("redis", "rediss", "valkey", "valkeys")
SOCKET = ("unix", "redis+socket", "valkey+socket")


class ValkeyUrlInvalid(Invalid):
    """The Redis URL cannot be read."""

    code = "redis_url_invalid"


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    """Where the server is and how to enter; a socket `path` comes before host and port."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    database: int = 0
    username: str = "default"
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    tls_options: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # as in the URL

    @staticmethod
    def parse(url: str, *, database: int = 0) -> "ValkeyAddress":
        """Read `redis[s]://`, `valkey[s]://`, `unix://` and Celery's `redis+socket://`; errors never quote the URL."""
        scheme = url.partition("://")[0].lower()
        if "sentinel" in scheme or "cluster" in scheme:
            raise ValkeyUrlInvalid(
                f"Safelight asks no {'Sentinel' if 'sentinel' in scheme else 'cluster'} where the server is: write the "
                "address of a single server, or one that always leads to the primary (a proxy, a service, a virtual "
                "address), as in redis://HOST:6379/0."
            )
        if scheme not in (*TCP, *SOCKET):
            raise ValkeyUrlInvalid(
                "The Redis URL must begin with redis://, rediss://, valkey://, valkeys:// or unix://."
            )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValkeyUrlInvalid(
                "The Redis URL cannot be read: check host and port, and percent-encode the password."
            ) from None
        options = dict(parse_qsl(parts.query))
        socket = scheme in SOCKET
        if socket and (host or not parts.path):
            raise ValkeyUrlInvalid("The Redis URL names no socket: write unix:///path/to/socket?db=0.")
        in_path = "" if socket else parts.path.strip("/")
        number = options.get("db") or options.get("virtual_host", "").strip("/") or in_path
        if number and not (number.isascii() and number.isdigit()):
            raise ValkeyUrlInvalid("The database in the Redis URL must be a number.")
        password = unquote(parts.password) if parts.password is not None else options.get("password")
        return ValkeyAddress(
            host=host or "localhost",
            port=port or 6379,
            path=unquote(parts.path) if socket else None,
            database=int(number) if number else database,
            username=unquote(parts.username or "") or options.get("username", "default"),
            password=password or None,
            tls=_tls(parts, options),
            tls_options={name: value for name, value in options.items() if name.startswith("ssl_")},
        )

    def __str__(self) -> str:
        """For people; without secrets."""
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


def _tls(parts: SplitResult, options: dict[str, str]) -> ssl.SSLContext | None:
    """Certificate options as in redis-py and Celery: `ssl_cert_reqs`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`."""
    if parts.scheme not in ("rediss", "valkeys"):
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ValkeyUrlInvalid(f"A certificate file of the Redis URL cannot be used: {error}.") from None
    demand = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no") or demand == "none":
        context.check_hostname = False
    if demand == "none":
        context.verify_mode = ssl.CERT_NONE
    return context
