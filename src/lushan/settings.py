"""Strict settings: frozen, nothing unknown, nothing of the wrong type, every message in one shape."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
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
        nearest = nearest_setting(settings_class, name)
        hint = f" Did you mean `{nearest}`?" if nearest else ""
        return f"{source}: unknown setting `{name}`. Known there: {known}.{hint}"
    got, reason = first["input"], first["msg"]
    if first["type"] in ("model_type", "dict_type"):
        reason = f"It holds settings of its own, such as `{name}.NAME=VALUE`"
    hint = ""
    if isinstance(got, str) and _is_number(got):
        # PyYAML follows YAML 1.1, which wants a dot before the exponent.
        hint = f" Write {float(got):.1e} without quotes and with a dot, not {got}."
    elif first["type"] == "string_type" and source == "--set":
        hint = " A text that is read like this needs quotes of its own: `NAME='\"TEXT\"'`."
    return f"{source}: setting `{name}` is wrong: {reason}. Got {got!r}.{hint}"


def _known_names(settings_class: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    for part in place:
        inner = settings_class.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        settings_class = inner
    return list(settings_class.model_fields)


def nearest_setting(settings_class: type[BaseModel], name: str) -> str | None:
    """Find the full name of the setting that was meant, if there is one."""
    return _nearest(name, list(_full_names(settings_class)))


def _full_names(settings_class: type[BaseModel]) -> Iterator[str]:
    """Give the name of every setting and every part, such as `training` and `training.epochs`."""
    for name in settings_class.model_fields:
        yield name
        yield from (f"{name}.{inner}" for inner in _known_names(settings_class, (name,)))


def _nearest(name: str, known: list[str]) -> str | None:
    """Find what was meant: a name that looks alike, or the same one in another part."""
    if close := get_close_matches(name, known, n=1):
        return close[0]
    last = name.rpartition(".")[2]
    return next((each for each in known if each.endswith(f".{last}")), None)


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
    if path.is_dir():
        raise SettingError(f"Settings file `{path}` is a folder. Name a YAML file.")
    if not (path.is_file() or path.is_fifo()):
        raise SettingError(f"Settings file `{path}` does not exist.")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"Settings file `{path}` is not valid YAML: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingError(
            f"Settings file `{path}` must hold `name: value` lines; got {type(values).__name__}."
        )
    return values


class _Loader(yaml.SafeLoader):
    """Plain values only, and no name twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
            what = f"`{twice[-1].value}` stands there twice"
            raise yaml.constructor.ConstructorError(None, None, what, twice[-1].start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around every text that `_Loader` would take for something else."""


def _written_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes a next line as it is, and reads it as a space, but for texts in double quotes.
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _written_text)


for _each in (_Loader, _Dumper):
    # Python's word for nothing, where YAML has `null`.
    _each.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def written_yaml(values: Mapping[str, Any]) -> str:
    """Give settings as the text of a YAML file, of which `read_yaml` makes the same again."""
    return yaml.dump(dict(values), Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def load_yaml(text: str) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Read YAML.

    Raises:
        ValueError: If it is none; says in one line what is wrong and where.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `["training.epochs=3", ...]` (from `--set`) into nested values; a value is read as YAML.

    Raises:
        SettingError: If one has no `=`, or is no YAML value.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise SettingError(f"`--set {assignment}`: expected `part.name=value`.")
        try:
            value = load_yaml(text)
        except ValueError:
            raise SettingError(f"`--set {assignment}`: `{text}` is no YAML value.") from None
        is_quoted = text.lstrip().startswith(("'", '"'))
        if isinstance(value, str) and _is_number(value) and not is_quoted:
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
