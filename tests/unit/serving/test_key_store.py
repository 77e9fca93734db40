"""API keys: shown once, stored as hashes, compared in constant time; expired, revoked and replaced as told."""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from sqlalchemy import select

from lushan.database.connect import Database
from lushan.database.schema import ApiKeyRow
from lushan.errors import ConflictError, SettingError
from lushan.serving import api_key, key_store
from lushan.serving.api_key import ApiKey
from lushan.serving.key_store import KeyStore
from tests.stores import make_key, new_database

DAY = timedelta(days=1)


class Clock(datetime):
    """The time of the key store, which a test moves on."""

    passed = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + cls.passed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with new_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(Clock, "passed", timedelta(0))
    for module in (api_key, key_store):
        monkeypatch.setattr(module, "datetime", Clock)
    return Clock


def found(store: KeyStore, text: str) -> ApiKey:
    key = store.find(text)
    assert key is not None
    return key


def test_new_key_is_found_with_what_it_may_do(store: KeyStore) -> None:
    made = make_key(store, "web", "chat", "predict", lifetime=30 * DAY, requests_per_minute=9)
    key = found(store, made.text)
    assert key == made.key
    assert (key.name, key.scopes, key.requests_per_minute) == ("web", ("predict", "chat"), 9)
    assert key.expires_at == key.created_at + 30 * DAY
    assert (key.state, key.revoked_at, key.last_used_at) == ("active", None, None)


def test_key_is_long_random_and_says_whose_it_is(store: KeyStore) -> None:
    texts = {make_key(store, f"key-{n}", "chat").text for n in range(5)}
    assert len(texts) == 5
    for text in texts:
        mark, id_, secret = text.split("_", 2)
        assert (mark, len(id_), len(secret)) == ("lushan", 12, 43)  # 43 characters of 6 bits: 256


def test_files_of_the_store_hold_the_hash_and_not_the_secret(
    store: KeyStore, tmp_path: Path
) -> None:
    text = make_key(store, "web", "chat").text
    secret = text.split("_", 2)[2]
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"web" in content
    assert secret.encode() not in content
    assert hashlib.sha256(secret.encode()).hexdigest().encode() not in content  # salted


def test_stored_hash_is_that_of_the_secret_with_a_salt_of_its_own(
    store: KeyStore, database: Database
) -> None:
    secrets = [make_key(store, f"key-{n}", "chat").text.split("_", 2)[2] for n in range(2)]
    with database.reading() as session:
        rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.name)).all()
    hashes = [
        hmac.new(bytes.fromhex(row.salt), secret.encode(), hashlib.sha256).hexdigest()
        for row, secret in zip(rows, secrets, strict=True)
    ]
    assert [row.digest for row in rows] == hashes
    assert len({row.salt for row in rows}) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text.replace("lushan_", "", 1),
        lambda text: text.rpartition("_")[0] + "_" if text.count("_") == 2 else "lushan_a_b",
        lambda text: "lushan_" + "0" * 12 + "_" + text.split("_", 2)[2],
        lambda _: "",
        lambda _: "lushan__",
        lambda _: "lushan_' OR 1=1 --_x",
        lambda _: "\ud800_\x00",
    ],
)
def test_other_texts_are_no_key(store: KeyStore, change: Callable[[str], str]) -> None:
    text = make_key(store, "web", "chat").text
    assert store.find(change(text)) is None


def test_secrets_are_compared_in_constant_time_also_for_an_unknown_id(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make_key(store, "web", "chat").text
    lengths: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def spy(first: str, second: str) -> bool:
        lengths.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert store.find(text) is not None
    assert store.find("lushan_000000000000_x") is None
    assert lengths == [(64, 64), (64, 64)]


def test_key_expires(store: KeyStore, clock: type[Clock]) -> None:
    text = make_key(store, "web", "chat", lifetime=DAY).text
    clock.passed = DAY - timedelta(minutes=1)
    assert found(store, text).state == "active"
    clock.passed = DAY
    assert found(store, text).state == "expired"


def test_revoked_key_stays_revoked(store: KeyStore, clock: type[Clock]) -> None:
    text = make_key(store, "web", "chat", lifetime=DAY).text
    assert [key.state for key in store.revoke("web")] == ["revoked"]
    clock.passed = 2 * DAY
    assert found(store, text).state == "revoked"


def test_rotated_key_works_beside_the_new_one_until_its_grace_is_over(
    store: KeyStore, clock: type[Clock]
) -> None:
    old = make_key(store, "web", "chat", lifetime=30 * DAY, requests_per_minute=5)
    clock.passed = 10 * DAY
    new = store.rotate("web", grace=DAY)
    assert new.text != old.text
    assert (new.key.scopes, new.key.requests_per_minute) == (("chat",), 5)
    assert new.key.expires_at == new.key.created_at + 30 * DAY
    assert [found(store, each.text).state for each in (old, new)] == ["active", "active"]
    clock.passed = 11 * DAY
    assert [found(store, each.text).state for each in (old, new)] == ["expired", "active"]


def test_grace_does_not_lengthen_the_life_of_a_key(store: KeyStore) -> None:
    old = make_key(store, "web", "chat", lifetime=timedelta(hours=1))
    store.rotate("web", grace=DAY)
    assert found(store, old.text).expires_at == old.key.expires_at


def test_key_without_an_end_is_replaced_by_one_without_an_end(store: KeyStore) -> None:
    make_key(store, "web", "chat")
    assert store.rotate("web", grace=timedelta(0)).key.expires_at is None
    assert [key.state for key in store.all()] == ["expired", "active"]


def test_revoking_takes_the_replaced_key_too(store: KeyStore) -> None:
    old = make_key(store, "web", "chat")
    new = store.rotate("web", grace=DAY)
    store.revoke("web")
    assert [found(store, each.text).state for each in (old, new)] == ["revoked", "revoked"]


def test_name_is_free_again_when_its_key_is_not_active(store: KeyStore) -> None:
    make_key(store, "web", "chat")
    with pytest.raises(ConflictError, match=r"an active key `web`.*`lushan keys rotate web`"):
        make_key(store, "web", "predict")
    store.revoke("web")
    assert make_key(store, "web", "predict").key.state == "active"


@pytest.mark.parametrize("action", ["revoke", "rotate"])
def test_unknown_name_is_told_with_the_known_ones(store: KeyStore, action: str) -> None:
    make_key(store, "web", "chat")
    options = {"grace": DAY} if action == "rotate" else {}
    with pytest.raises(SettingError, match=r"no active key `app`\. There are: web\."):
        getattr(store, action)("app", **options)


def test_last_use_is_kept_to_the_minute(store: KeyStore, clock: type[Clock]) -> None:
    text = make_key(store, "web", "chat").text
    store.note_use(found(store, text))
    first = found(store, text).last_used_at
    assert first is not None
    clock.passed = timedelta(seconds=50)
    store.note_use(found(store, text))
    assert found(store, text).last_used_at == first
    clock.passed = timedelta(seconds=70)
    store.note_use(found(store, text))
    assert (found(store, text).last_used_at or first) - first >= timedelta(seconds=69)
