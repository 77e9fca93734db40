"""A run is told while it goes on, and when it has ended."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI

from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
from lushan.serving.page.tuning import Plan, Tuner
from lushan.serving.page.watching import progress_html
from tests.unit.serving.page.conftest import MakeStudio


class StillTuner:
    """Says that a run stands as the test wants it."""

    def __init__(self, state: str, out: Path) -> None:
        self.state = state
        self.plan = Plan(out, "classification", "tiny", "quick", out)

    def last_lines(self) -> list[str]:
        return ["Epoch <1>"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    recipe = "training: {epochs: 2, rows_per_step: 16}\n"
    ledger = {"splits": {"train": {"total": {"num_examples": 32}}}}
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    (tmp_path / "steps.jsonl").write_text('{"step": 3, "loss": 1}\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("running", ["Tuning", "Step 3 of about 4", "Epoch &lt;1&gt;"]),
        ("failed", ["stopped", "Epoch &lt;1&gt;"]),
        ("cancelled", ["Cancelled"]),
        ("finished", ["is ready"]),
    ],
)
def test_state_of_a_run_is_told(state: str, told: list[str], out: Path, english: Texts) -> None:
    studio = Studio(FastAPI())
    object.__setattr__(studio, "tuner", StillTuner(state, out))
    page = progress_html(studio, english)
    assert [part for part in told if part not in page] == []


def test_nothing_is_told_before_the_first_run(make_studio: MakeStudio, english: Texts) -> None:
    studio = make_studio()
    assert isinstance(studio.tuner, Tuner)
    assert progress_html(studio, english) == ""
