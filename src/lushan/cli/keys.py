"""`lushan keys`: who may use a server that others can reach."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lushan.cli.console import (
    Command,
    JsonOption,
    SeedOption,
    StoreOption,
    emit_json,
    open_store,
    show_table,
    tell,
)
from lushan.errors import SettingError
from lushan.serving.api_key import ApiKey, KeyPlan, parse_scopes

if TYPE_CHECKING:
    from lushan.serving.key_store import MadeKey

app = typer.Typer(help="Make, list, replace and revoke API keys.", add_completion=False)
PURPOSE = "`lushan keys`"
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")]


@app.command("create", cls=Command)
def create(
    name: NameArgument,
    *,
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            metavar="SCOPE,...",
            help="What the key may do: predict, chat, feedback; admin may do all, and read feedback.",
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="30d", help="How long it works; else until revoked."),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            "--requests-per-minute", min=1, max=10**9, help="Most requests in a minute; else any."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Make a key and print it, once: only its hash is stored."""
    del seed  # every command takes it; keys are as random as the system can make them
    plan = KeyPlan(
        name=name,
        scopes=parse_scopes(scope),
        lifetime=None if expires is None else _time("--expires", expires),
        requests_per_minute=requests_per_minute,
    )
    with open_store(store, purpose=PURPOSE, create=True) as database:
        from lushan.serving.key_store import KeyStore

        made = KeyStore(database).create(plan)
    _print_made(made, as_json=as_json)


@app.command("rotate", cls=Command)
def rotate(
    name: NameArgument,
    *,
    grace: Annotated[
        str, typer.Option("--grace", metavar="1d", help="How long the old key still works.")
    ] = "1d",
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Make a key that takes the place of another, and print it, once; the old one works for a while."""
    del seed
    grace_time = _time("--grace", grace)
    with open_store(store, purpose=PURPOSE, create=False) as database:
        from lushan.serving.key_store import KeyStore

        made = KeyStore(database).rotate(name, grace=grace_time)
    tell(f"The old key works for {grace} more, at most.")
    _print_made(made, as_json=as_json)


@app.command("revoke", cls=Command)
def revoke(
    name: NameArgument,
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Make every key of that name useless, at once."""
    del seed
    with open_store(store, purpose=PURPOSE, create=False) as database:
        from lushan.serving.key_store import KeyStore

        revoked = KeyStore(database).revoke(name)
    tell(f"Revoked: {', '.join(key.id for key in revoked)}")
    if as_json:
        emit_json({"revoked": [_plain(key) for key in revoked]})


@app.command("list", cls=Command)
def list_them(
    *, store: StoreOption = None, as_json: JsonOption = False, seed: SeedOption = 0
) -> None:
    """List all keys, without their secrets."""
    del seed
    with open_store(store, purpose=PURPOSE, create=False) as database:
        from lushan.serving.key_store import KeyStore

        keys = KeyStore(database).all()
    rows = [
        (
            key.name,
            key.id,
            key.state,
            ", ".join(key.scopes),
            _when(key.created_at),
            _when(key.expires_at),
            _when(key.last_used_at),
        )
        for key in keys
    ]
    show_table(("name", "id", "state", "scopes", "created", "expires", "last used"), rows)
    if as_json:
        emit_json({"keys": [_plain(key) for key in keys]})


def _print_made(made: MadeKey, *, as_json: bool) -> None:
    tell("Keep this key: it is not stored and cannot be shown again.")
    if as_json:
        emit_json({"key": made.text, **_plain(made.key)})
    else:
        print(made.text)


def _plain(key: ApiKey) -> dict[str, Any]:
    values = {**asdict(key), "state": key.state}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _when(time: datetime | None) -> str:
    return "never" if time is None else f"{time:%Y-%m-%d %H:%M}"


def _time(option: str, text: str) -> timedelta:
    """Read a time such as `30d`.

    Raises:
        SettingError: If it is something else.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise SettingError(f"`{option} {text}`: expected a time such as `30d`, `12h` or `90m`.")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
