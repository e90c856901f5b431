"""Keys and browser sessions over HTTP: what they open, what they do not, and how they end."""

import uuid
from typing import Any

import pytest
from api_service import JOBS, order
from guarded_service import KEYS, SESSION, Guarded, in_database, make_key, problem_of

from accounts.identity_provider import shared_token
from safelight.accounts import (
    SHOWN,
    Identity,
    hash_of,
    open_session,
)

# Keys


def test_a_key_of_ones_own(guarded: Guarded) -> None:
    owner = str(uuid.uuid4())
    admin = guarded.client(guarded.key(owner, "admin", tier="free"))
    made = admin.post(KEYS, json={"name": "laptop", "scopes": ["read"], "expires_in_days": 1})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    assert (key["tier"], key["scopes"], key["prefix"]) == ("free", ["read"], key["secret"][:SHOWN])
    other = guarded.client(key["secret"])
    assert other.get(JOBS).status_code == 200
    assert problem_of(other.post(JOBS, json=order()), 403) == "scope_missing"
    listed = admin.get(KEYS)
    assert [each["name"] for each in listed.json()["items"]] == ["laptop", "test"]
    assert key["secret"] not in listed.text
    assert admin.delete(f"{KEYS}/{key['id']}").status_code == 204
    assert problem_of(other.get(JOBS), 401) == "key_revoked"  # at once, in this process
    assert admin.delete(f"{KEYS}/{key['id']}").status_code == 204


def test_keys_come_in_pages(guarded: Guarded) -> None:
    admin = guarded.client(guarded.key(str(uuid.uuid4()), "admin"))
    names = ["test", *(str(n) for n in range(4))]
    for name in names[1:]:
        admin.post(KEYS, json={"name": name})
    seen: list[str] = []
    cursor: str | None = None
    for size in (2, 2, 1):
        page = admin.get(KEYS, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) == size
        seen += [key["name"] for key in page["items"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (names[::-1], None)
    assert problem_of(admin.get(KEYS, params={"cursor": "x"}), 400) == "invalid_cursor"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "expires_in_days": 0},
        {"name": "x", "tier": "pro"},
        {"name": "x", "owner_id": "bob"},
        {"name": "a\0b"},
    ],
)
def test_keys_that_cannot_be(guarded: Guarded, body: dict[str, Any]) -> None:
    assert problem_of(guarded.ada.post(KEYS, json=body), 422) == "invalid_request"


# Sessions


def test_a_session_in_a_browser(guarded: Guarded, adas: dict[str, str]) -> None:
    opened = guarded.ada.post(SESSION)
    assert opened.status_code == 201
    cookies = {line.split("=")[0]: line for line in opened.headers.get_list("set-cookie")}
    hidden, shown = cookies["safelight_session"], cookies["safelight_csrf"]
    for cookie in (hidden, shown):
        assert "SameSite=lax" in cookie
        assert "Path=/" in cookie
        assert "Secure" not in cookie  # this is http
    assert "HttpOnly" in hidden
    assert "HttpOnly" not in shown
    csrf = opened.json()["csrf_token"]
    assert opened.cookies["safelight_csrf"] == csrf

    browser = guarded.client()
    browser.cookies.update(opened.cookies)
    me = browser.get(SESSION).json()
    assert (me["owner_id"], me["how"], me["csrf_token"]) == ("ada", "session", csrf)
    assert browser.get(f"{JOBS}/{adas['job']}").status_code == 200
    with browser.stream("GET", f"{JOBS}/{adas['job']}/events") as stream:
        assert stream.status_code == 200
    for wrong in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": opened.cookies["safelight_session"]}):
        assert problem_of(browser.post(JOBS, json=order(), headers=wrong), 403) == "csrf_missing"
        assert problem_of(browser.delete(SESSION, headers=wrong), 403) == "csrf_missing"
    right = {"X-CSRF-Token": csrf}
    assert browser.post(JOBS, json=order(), headers=right).status_code == 202
    assert problem_of(browser.post(SESSION, headers=right), 401) == "unauthenticated"
    # Another session's value does not fit.
    other = guarded.ada.post(SESSION).json()["csrf_token"]
    assert problem_of(browser.post(JOBS, json=order(), headers={"X-CSRF-Token": other}), 403) == "csrf_missing"

    secret = opened.cookies["safelight_session"]
    ended = browser.delete(SESSION, headers=right)
    assert ended.status_code == 204
    assert all("Max-Age=0" in line for line in ended.headers.get_list("set-cookie"))
    stale = guarded.client(Cookie=f"safelight_session={secret}")
    assert problem_of(stale.get(JOBS), 401) == "session_ended"


def test_over_https_the_cookies_are_secure(guarded: Guarded) -> None:
    opened = guarded.ada.post(SESSION, headers={"X-Forwarded-Proto": "https"})
    assert all("Secure" in line for line in opened.headers.get_list("set-cookie"))


def test_a_session_may_do_no_more_than_its_key(guarded: Guarded) -> None:
    secret, key = make_key(guarded.url, "ada", "read")
    opened = guarded.client(secret).post(SESSION)
    assert opened.json()["scopes"] == ["read"]
    browser = guarded.client()
    browser.cookies.update(opened.cookies)
    right = {"X-CSRF-Token": opened.json()["csrf_token"]}
    assert problem_of(browser.post(JOBS, json=order(), headers=right), 403) == "scope_missing"
    assert guarded.ada.delete(f"{KEYS}/{key.id}").status_code == 204
    assert problem_of(browser.get(JOBS), 401) == "session_ended"


def test_a_session_ends_after_its_time(guarded: Guarded) -> None:
    ada = Identity("ada", frozenset({"read"}), None, "token")
    in_database(guarded.url, open_session, hash_of("secret-1"), ada, -1.0)
    assert problem_of(guarded.client(Cookie="safelight_session=secret-1").get(JOBS), 401) == "session_ended"
    assert problem_of(guarded.client(Cookie="other=1").get(JOBS), 401) == "unauthenticated"
    assert problem_of(guarded.client(Cookie="safelight_session=").get(JOBS), 401) == "unauthenticated"


def test_a_token_is_traded_too(guarded: Guarded) -> None:
    subject = str(uuid.uuid4())
    opened = guarded.client(shared_token(sub=subject)).post(SESSION)
    browser = guarded.client()
    browser.cookies.update(opened.cookies)
    assert browser.get(SESSION).json()["owner_id"] == subject
