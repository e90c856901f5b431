"""How often somebody may do something: token buckets, kept in Redis so that all API processes count together.

A bucket holds as many tokens as the policy allows in its window and is refilled evenly. Time is Redis' own. While Redis
is away or slow every process counts for itself: the limit is then looser by the number of processes, but nobody waits.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.errors import SafelightError
from safelight.valkey import LuaScript, Valkey

PATIENCE_SECONDS = 0.25  # beyond this the answer of Redis is not waited for
MAX_LOCAL = 10_000

# KEYS: the bucket. ARGV: quota, window in seconds, how many are wanted. Returns how many were taken, and 1000 times how
# many are left.
TAKE = LuaScript(
    """
local quota, window, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = quota
if known[1] then
  tokens = math.min(quota, tonumber(known[1]) + math.max(0, now - tonumber(known[2])) * quota / window)
end
local taken = math.min(wanted, math.floor(tokens))
tokens = tokens - taken
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(window) + 1)
return {taken, math.floor(tokens * 1000)}
"""
)


@dataclass(frozen=True, slots=True)
class Policy:
    """`quota` times in `window_seconds`; `name` stands in headers and keys."""

    name: str
    quota: int
    window_seconds: int = 60


@dataclass(frozen=True, slots=True)
class RateDecision:
    """Whether it was allowed, and how the bucket stands after it."""

    policy: Policy
    is_allowed: bool
    tokens: float

    @property
    def wait_seconds(self) -> int:
        """Whole seconds until the next token is there; 0 if the bucket is full."""
        policy = self.policy
        if self.tokens >= policy.quota:
            return 0
        missing = math.floor(self.tokens) + 1 - self.tokens
        return max(1, math.ceil(missing * policy.window_seconds / policy.quota))

    def seconds_until(self, count: int) -> int:
        """Whole seconds until so many tokens are there; no more than the bucket holds can be waited for."""
        missing = min(count, self.policy.quota) - self.tokens
        return max(0, math.ceil(missing * self.policy.window_seconds / self.policy.quota))

    @property
    def headers(self) -> Mapping[str, str]:
        """`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers)."""
        policy = self.policy
        return {
            "RateLimit-Policy": f'"{policy.name}";q={policy.quota};w={policy.window_seconds}',
            "RateLimit": f'"{policy.name}";r={math.floor(self.tokens)};t={self.wait_seconds}',
        }


class Limiter:
    """Takes tokens; `namespace` is the prefix of the keys."""

    def __init__(self, valkey: Valkey, namespace: str) -> None:
        self._valkey = valkey
        self._ns = namespace
        self._local: OrderedDict[tuple[Policy, str], tuple[float, float]] = OrderedDict()  # tokens, at (monotonic)

    async def take(self, policy: Policy, holder: str, count: int = 1) -> RateDecision:
        """Take so many tokens of the holder's bucket, or as many as are there. Never fails, and hardly ever waits."""
        key = f"{self._ns}:limit:{policy.name}:{holder}"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                arguments = [policy.quota, policy.window_seconds, count]
                taken, thousandths = await self._valkey.eval(TAKE, [key], arguments)
        except (TimeoutError, SafelightError):
            return self._take_here(policy, holder, count)
        return RateDecision(policy, taken == count, thousandths / 1000)

    def _take_here(self, policy: Policy, holder: str, count: int) -> RateDecision:
        now = time.monotonic()
        tokens, at = self._local.get((policy, holder), (float(policy.quota), now))
        tokens = min(policy.quota, tokens + (now - at) * policy.quota / policy.window_seconds)
        taken = min(count, math.floor(tokens))
        tokens -= taken
        self._local[policy, holder] = (tokens, now)
        self._local.move_to_end((policy, holder))
        if len(self._local) > MAX_LOCAL:
            self._local.popitem(last=False)
        return RateDecision(policy, taken == count, tokens)
