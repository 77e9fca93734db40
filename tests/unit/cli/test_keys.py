"""`lushan keys`: a key is printed once and works; wrong names, scopes and times are refused."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lushan.cli.main import run
from lushan.serving.key_store import KeyStore
from tests.stores import new_database


def answer_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def state_of(text: str, store: Path) -> str | None:
    with new_database(store) as database:
        key = KeyStore(database).find(text)
    return None if key is None else key.state


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"  # what `LUSHAN_STORE` says in tests


def test_create_prints_the_key_alone_on_stdout(
    capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    assert run(["keys", "create", "web", "--scope", "predict"]) == 0
    output = capsys.readouterr()
    assert state_of(output.out.strip(), store) == "active"
    assert "Keep this key" in output.err
    assert output.out.strip() not in output.err


def test_create_as_json_tells_all_of_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scope", "predict, chat", "--expires", "30d", "--requests-per-minute", "60"]
    assert run(["keys", "create", "web", *words, "--json"]) == 0
    told = answer_of(capsys)
    assert told["key"].startswith(f"lushan_{told['id']}_")
    assert (told["name"], told["scopes"], told["state"]) == ("web", ["predict", "chat"], "active")
    assert told["requests_per_minute"] == 60
    left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=31)


def test_store_can_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "other"
    assert run(["keys", "create", "web", "--scope", "chat", "--store", str(place)]) == 0
    assert state_of(capsys.readouterr().out.strip(), place) == "active"


def test_list_shows_keys_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "web", "--scope", "chat", "--json"]) == 0
    made = answer_of(capsys)
    assert run(["keys", "list", "--json"]) == 0
    output = capsys.readouterr()
    (listed,) = json.loads(output.out)["keys"]
    secret = made.pop("key").split("_", 2)[2]
    assert listed == made
    assert secret not in output.out + output.err
    assert "web" in output.err


def test_rotate_gives_a_new_key_and_the_old_one_a_while(
    capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    run(["keys", "create", "web", "--scope", "chat"])
    old = capsys.readouterr().out.strip()
    assert run(["keys", "rotate", "web", "--grace", "2h"]) == 0
    output = capsys.readouterr()
    assert "works for 2h more" in output.err
    assert [state_of(text, store) for text in (old, output.out.strip())] == ["active", "active"]
    assert run(["keys", "rotate", "web", "--grace", "0s"]) == 0
    assert state_of(old, store) == "expired"


def test_revoke_ends_a_key_at_once(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    run(["keys", "create", "web", "--scope", "chat"])
    text = capsys.readouterr().out.strip()
    assert run(["keys", "revoke", "web", "--json"]) == 0
    (revoked,) = answer_of(capsys)["revoked"]
    assert (revoked["name"], revoked["state"]) == ("web", "revoked")
    assert state_of(text, store) == "revoked"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "web", "--scope", "fly"], "Unknown scope `fly`. Known: predict, chat, f"),
        (["create", "web", "--scope", ""], "Unknown scope ``. Known: predict"),
        (["create", "a b", "--scope", "chat"], "`a b` cannot be a key's name"),
        (["create", "web", "--scope", "chat", "--expires", "soon"], "`--expires soon`: expected"),
        (["create", "web", "--scope", "chat", "--expires", "0d"], "expires at once"),
        (["rotate", "web", "--grace", "1w"], "`--grace 1w`: expected a time such as `30d`"),
        (["rotate", "web"], "There is no store in"),
        (["revoke", "web"], "There is no store in"),
        (["list"], "There is no store in"),
    ],
    ids=str,
)
def test_mistakes_are_told_with_exit_code_2_and_nothing_is_made(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "none"
    assert run(["keys", *words, "--store", str(store), "--json"]) == 2
    assert message in answer_of(capsys)["error"]
    assert not store.exists()


def test_lushan_without_the_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert run(["keys", "list", "--json"]) == 2
    expected = (
        "`lushan keys` needs `sqlalchemy`. Install it in the folder of Lushan's source: "
        "`pip install -c constraints.txt '.[serve]'`."
    )
    assert answer_of(capsys) == {"error": expected}


def test_every_command_can_be_listed_without_the_extra() -> None:
    packages = ("alembic", "fastapi", "prometheus_client", "sqlalchemy", "uvicorn")
    code = f"import sys; sys.modules.update(dict.fromkeys({packages})); import lushan\n"
    code += "from lushan.cli.main import run; sys.exit(run(['--help']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "feedback" in ran.stdout
    assert "keys" in ran.stdout
