"""Valkey and Redis: our client, the addresses it reads, and a first look at a server before anything relies on it."""

from safelight.valkey.address import Address, ValkeyUrlInvalid
from safelight.valkey.client import Script, Valkey, ValkeyAway, ValkeyError
from safelight.valkey.look import RedisUnsuitable, require_redis

__all__ = [
    "Address",
    "RedisUnsuitable",
    "Script",
    "Valkey",
    "ValkeyAway",
    "ValkeyError",
    "ValkeyUrlInvalid",
    "require_redis",
]
