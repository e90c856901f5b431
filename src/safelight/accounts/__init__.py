"""Accounts: users, their keys and sessions, and who is at the door."""

from safelight.accounts.authenticator import Authenticator, Tokens
from safelight.accounts.identity import (
    LOCAL,
    LOCAL_OWNER,
    SCOPES,
    How,
    Identity,
    Scope,
    ScopeMissing,
    Unauthenticated,
    granted,
    in_order,
)
from safelight.accounts.key import SHOWN, Key, KeyInvalid, KeyNotFound, NewKey, hash_of, new_secret
from safelight.accounts.service import (
    create_key,
    end_session,
    forget_key,
    list_keys,
    open_session,
    purge_sessions,
    revoke_key,
    tier_of,
)
from safelight.accounts.session import CsrfMissing, SessionEnded, check_csrf, csrf_token, new_session_secret
from safelight.accounts.user import is_owner_id

__all__ = [
    "LOCAL",
    "LOCAL_OWNER",
    "SCOPES",
    "SHOWN",
    "Authenticator",
    "CsrfMissing",
    "How",
    "Identity",
    "Key",
    "KeyInvalid",
    "KeyNotFound",
    "NewKey",
    "Scope",
    "ScopeMissing",
    "SessionEnded",
    "Tokens",
    "Unauthenticated",
    "check_csrf",
    "create_key",
    "csrf_token",
    "end_session",
    "forget_key",
    "granted",
    "hash_of",
    "in_order",
    "is_owner_id",
    "list_keys",
    "new_secret",
    "new_session_secret",
    "open_session",
    "purge_sessions",
    "revoke_key",
    "tier_of",
]
