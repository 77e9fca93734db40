"""Settings that go together, and those that do not."""

from typing import Any

import pytest
import torch

from lushan.errors import SettingError
from lushan.inference.generation_settings import GenerationSettings, check_settings
from lushan.settings import build


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 3}, "`top_k` has no effect at `temperature` 0"),
        ({"top_p": 0.9}, "`top_p` has no effect at `temperature` 0"),
        ({"min_p": 0.1}, "`min_p` has no effect at `temperature` 0"),
        ({"length_penalty": 2.0}, "`length_penalty` has no effect with `num_beams` 1"),
        ({"early_stopping": True}, "`early_stopping` has no effect with `num_beams` 1"),
        ({"num_beams": 4, "temperature": 0.5}, "`num_beams` 4 needs `temperature` 0, got 0.5"),
        ({"num_return_sequences": 2}, "`num_return_sequences` 2 needs .* got 1"),
        ({"num_return_sequences": 5, "num_beams": 4}, "`num_return_sequences` 5 .* got 4"),
        ({"stop_strings": ("a", "")}, "must not hold an empty text"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        check_settings(GenerationSettings(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "num_return_sequences": 3},
        {
            "num_beams": 4,
            "num_return_sequences": 4,
            "length_penalty": 0.5,
            "early_stopping": "never",
        },
        {"seed": 3, "repetition_penalty": 1.2, "stop_strings": ("\n",)},
    ],
)
def test_settings_that_go_together_pass(values: dict[str, Any]) -> None:
    check_settings(GenerationSettings(**values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_k", 0),
        ("min_p", 1.5),
        ("max_new_tokens", 0),
        ("repetition_penalty", 0.0),
        ("early_stopping", "maybe"),
    ],
)
def test_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"`{name}.*{value!r}"):
        build(GenerationSettings, {name: value}, source="--set")


def test_any_seed_is_one_that_torch_takes() -> None:
    seeds = [GenerationSettings(seed=each).seed_of(1) for each in (5, 10**19)]
    assert seeds[0] == 5_000_016
    assert torch.Generator().manual_seed(seeds[1]).initial_seed() == seeds[1]


def test_stop_strings_may_come_as_a_list() -> None:
    found = build(GenerationSettings, {"stop_strings": ["a", "b"]}, source="recipe.yaml")
    assert found.stop_strings == ("a", "b")
