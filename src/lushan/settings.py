"""Strict settings: frozen, nothing unknown, nothing of the wrong type, every message in one shape."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lushan.errors import SettingError

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of every settings part. The line below a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def build(settings_class: type[SettingsT], values: Mapping[str, Any], *, source: str) -> SettingsT:
    """Make settings from plain values.

    Args:
        settings_class: The class to build.
        values: Nested plain values, as YAML gives them.
        source: Where the values came from, for messages: a file name or `--set`.

    Raises:
        SettingError: If a key is unknown or a value has a wrong type or range.
    """
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        raise SettingError(_explain(error, settings_class, source)) from None


def _explain(error: ValidationError, settings_class: type[BaseModel], source: str) -> str:
    first = error.errors()[0]
    place = tuple(str(part) for part in first["loc"])
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = ", ".join(_known_names(settings_class, place[:-1]))
        return f"{source}: unknown setting `{name}`. Known there: {known}."
    got = first["input"]
    hint = ""
    if isinstance(got, str) and _is_number(got):
        # PyYAML follows YAML 1.1, which wants a dot before the exponent.
        hint = f" Write {float(got):.1e} without quotes and with a dot, not {got}."
    return f"{source}: setting `{name}` is wrong: {first['msg']}. Got {got!r}.{hint}"


def _known_names(settings_class: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    for part in place:
        inner = settings_class.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        settings_class = inner
    return list(settings_class.model_fields)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a settings file.

    Raises:
        SettingError: If it is missing, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise SettingError(f"Settings file `{path}` does not exist.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"Settings file `{path}` is not valid YAML: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingError(f"Settings file `{path}` must hold `name: value` lines.")
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `["training.epochs=3", ...]` (from `--set`) into nested values; a value is read as YAML.

    Raises:
        SettingError: If one has no `=`, or is no YAML value.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise SettingError(f"`--set {assignment}`: expected `part.name=value`.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SettingError(f"`--set {assignment}`: `{text}` is no YAML value.") from None
        if isinstance(value, str) and _is_number(value):
            # 1e-3 is text in YAML 1.1; on the command line it can only be a number.
            value = float(value)
        values = merged(values, nested({name: value}))
    return values


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"training.epochs": 3}` into `{"training": {"epochs": 3}}`."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        inner = value
        for part in reversed(name.split(".")):
            inner = {part: inner}
        values = merged(values, inner)
    return values


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested values over others; returns a new mapping."""
    result = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result
