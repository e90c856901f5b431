"""How much somebody may do a minute: what writes a row or bytes takes a token of its owner's bucket, by their tier."""

from dataclasses import replace

from fastapi import Depends, Request
from starlette.responses import Response

from safelight.accounts import Identity
from safelight.api.deps import Asker, World
from safelight.api.problems import problem
from safelight.bootstrap import Safelight
from safelight.config import Tier
from safelight.errors import SafelightError
from safelight.limits import Policy, RateDecision


class TooQuick(SafelightError):
    """You do more a minute than you may."""

    kind = "rate_limited"
    code = "rate_limited"


def tier_of(asker: Identity, world: Safelight) -> Tier | None:
    """The tier of whoever asks; None without accounts."""
    return None if asker.tier is None else world.settings.tiers[asker.tier]


async def take_tokens(world: Safelight, asker: Identity, count: int = 1) -> RateDecision | None:
    """Let so many jobs be submitted now, all or none; more than a minute's worth count as a minute's worth.

    None: there is no limit.
    """
    tier = tier_of(asker, world)
    if tier is None or tier.submits_per_minute is None:
        return None
    policy = Policy("submit", tier.submits_per_minute)
    wanted = min(count, policy.quota)
    if wanted > 1:  # a refusal shall cost nothing
        bucket = await world.limiter.take(policy, asker.owner_id, 0)
        if bucket.tokens < wanted:
            return replace(bucket, is_allowed=False)
    return await world.limiter.take(policy, asker.owner_id, wanted)


def too_quick(request: Request, decision: RateDecision, count: int = 1) -> Response:
    """The answer to who submits more than a tier may."""
    wait = decision.seconds_until(count)
    what = "the next one" if count == 1 else f"these {count}"
    detail = f"You may submit {decision.policy.quota} jobs a minute; {what} in {wait} s."
    headers = {**decision.headers, "Retry-After": str(wait)}
    return problem(request.state.request_id, 429, "rate_limited", detail, headers=headers)


async def _write(world: World, asker: Asker) -> None:
    decision = await take_tokens(world, asker)
    if decision is not None and not decision.is_allowed:
        wait = decision.seconds_until(1)
        detail = f"You may submit, upload and change {decision.policy.quota} things a minute; the next one in {wait} s."
        raise TooQuick(detail, retry_after=wait)


# `dependencies` of routes that write something; submits take their tokens themselves.
RATED = [Depends(_write)]
