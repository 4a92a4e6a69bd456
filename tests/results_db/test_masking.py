"""No secret survives the mask, and nothing else is masked."""

from __future__ import annotations

import pytest

from results_db import masking
from results_db.masking import mask, mask_url, remember_secrets, secrets_of

TOKEN = "bb_abcdEFGHIJKLMNOPQRSTUVWXYZ0123456789_-abcdefg"


def test_a_long_text_is_looked_at_a_few_times_only() -> None:
    """A request's path is logged: one of 60 kB once took the server half a minute, before anybody was let in."""
    evils = ("passwo", "secret_key-", "access_", "://:", "://a:", "://a:b@", "password", "a-", "cookie ", "bearer ")
    for evil in (*evils, "authorization:"):
        text = evil * (200_000 // len(evil))
        assert mask(text).startswith(evil[:2])


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql+psycopg://bob:s3cr:t/x@host:5432/db failed", "postgresql+psycopg://bob:***@host:5432/db failed"),
        ("at redis://:pw@localhost:6379/0, again", "at redis://:***@localhost:6379/0, again"),
        ("unix://u:pa@ss@/tmp/redis.sock", "unix://u:***@/tmp/redis.sock"),
        ("'postgresql://u:p@h/d' and 'redis://:q@h'", "'postgresql://u:***@h/d' and 'redis://:***@h'"),
        ("host=h password=hunter2 user=u", "host=h password=*** user=u"),
        ("{'password': 'hunter2', 'user': 1}", "{'password': '***', 'user': 1}"),
        ("postgresql://h/d?password=abc&x=1", "postgresql://h/d?password=***&x=1"),
        (
            "s3://b/k?X-Amz-Signature=abc&aws_secret_access_key=def",
            "s3://b/k?X-Amz-Signature=***&aws_secret_access_key=***",
        ),
        ("postgresql://h/d?sslpassword=abc&sslkey=/k.pem", "postgresql://h/d?sslpassword=***&sslkey=/k.pem"),
        ("PGPASSWORD=abc PGUSER=u PGPASSFILE=/p", "PGPASSWORD=*** PGUSER=u PGPASSFILE=/p"),
        ("AWS_ACCESS_KEY_ID=id AWS_SESSION_TOKEN=abc", "AWS_ACCESS_KEY_ID=id AWS_SESSION_TOKEN=***"),
        ("?X-Amz-Security-Token=abc&X-Amz-Expires=9", "?X-Amz-Security-Token=***&X-Amz-Expires=9"),
        ("{'X-Amz-Security-Token': 'abc'}", "{'X-Amz-Security-Token': '***'}"),
        ("HF_TOKEN=abc HUGGING_FACE_HUB_TOKEN=def", "HF_TOKEN=*** HUGGING_FACE_HUB_TOKEN=***"),
        ("token=abc SECRET_KEY=abc AccountKey=def;x", "token=*** SECRET_KEY=*** AccountKey=***;x"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("Cookie: bitbudget_session=abc; theme=dark", "Cookie: ***"),
        ("{'authorization': 'Digest abc'}", "{'authorization': '***'}"),
        (f"sent {TOKEN}.", "sent bb_abcd***."),
    ],
)
def test_secrets_go(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "see http://h/a and bob@x.com",
        "http://localhost:8000/x?y=a@b",
        "tokens=256 n_tokens=16384 token_hash='abc' pad_token='<eos>'",
        "layer 3, q: weight holds NaN",
        "eos_token=</s> unk_token: '<unk>' key=value sort_key=name",
        "sqlite:////tmp/a:b@c/bitbudget.db",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("redis://:p%40ss@h/0", {"p%40ss", "p@ss"}),
        ("redis://h/0?password=query-secret", {"query-secret"}),
        ("postgresql://h/d?sslmode=require&sslpassword=tls-secret", {"tls-secret"}),
        ("postgresql://h/d?sslpassword=a%2Cb+c,d", {"a%2Cb+c,d", "a,b+c,d", "a,b c,d"}),
        ("postgresql+psycopg://u:sl/ash@h/d", {"sl/ash"}),
        ("sqlite:///x.db", set()),
        ("http://[", set()),
    ],
)
def test_passwords_of_urls(url: str, secrets: set[str]) -> None:
    assert secrets_of(url) == secrets
    shown = mask_url(url)
    assert not any(secret in shown for secret in secrets)


def test_what_is_remembered_goes_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_known", set())
    remember_secrets(["redis://:hunter2hunter2@h/0", "redis://:abc@h/0"])
    assert mask("driver says hunter2hunter2 is wrong") == "driver says *** is wrong"
    assert mask("abc") == "abc", "too short: half of a log would be masked"
