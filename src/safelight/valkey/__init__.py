"""Valkey and Redis: our client, the addresses it reads, and a first look at a server before anything relies on it."""

from safelight.valkey.address import ValkeyAddress, ValkeyUrlInvalid
from safelight.valkey.client import LuaScript, Valkey, ValkeyAway, ValkeyError
from safelight.valkey.look import RedisUnsuitable, require_redis

__all__ = [
    "LuaScript",
    "RedisUnsuitable",
    "Valkey",
    "ValkeyAddress",
    "ValkeyAway",
    "ValkeyError",
    "ValkeyUrlInvalid",
    "require_redis",
]
