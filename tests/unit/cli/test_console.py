"""What commands print."""

import dataclasses
import gc
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lushan.cli.console import (
    TrainingBar,
    emit_json,
    quick_imports,
    show_error,
    show_outcome,
    show_table,
)
from lushan.records import Interval
from lushan.training.loop import Evaluated, StepDone


def test_quick_imports_look_for_no_garbage_and_keep_what_they_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.get_count()[0]))
    monkeypatch.delitem(sys.modules, "this_or_that", raising=False)
    with quick_imports():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "this_or_that", dataclasses)
    assert gc.isenabled()
    assert len(frozen) == 1


def test_quick_imports_of_nothing_new_freeze_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("all was imported before"))
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401 # pyright: ignore[reportMissingImports]
    assert gc.isenabled()


def test_quick_imports_leave_the_optimizers_of_scipy_unread() -> None:
    program = (
        "import sys, lushan.cli.console as console\n"
        "with console.quick_imports():\n"
        "    import lushan.workflows.tune\n"
        "assert 'scipy.optimize' not in sys.modules\n"
        "assert sys.modules['transformers.utils'].is_scipy_available()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_emit_json_is_one_line_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"run": Path("runs/a"), "accuracy": Interval(0.5, 0.4, 0.6), "text": "\u5e90\u5c71\n"}
    emit_json({**value, "rows": np.arange(3), "loss": np.float32(0.5)})
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert json.loads(output) == {
        "run": "runs/a",
        "accuracy": dataclasses.asdict(Interval(0.5, 0.4, 0.6)),
        "text": "\u5e90\u5c71\n",
        "rows": [0, 1, 2],
        "loss": 0.5,
    }


def test_emit_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json({"loss": float("nan")})
    with pytest.raises(TypeError, match="object has no JSON form"):
        emit_json({"loss": object()})


def test_messages_keep_their_brackets_and_stay_on_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = "row 3: `[bold]` is " + "very " * 40 + "long"
    show_error(message)
    assert capsys.readouterr().err == f"Error: {message}\n"


def test_table_goes_to_stderr_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("[red]", "id:id:7", r"\[x^2+1\]", r"\[/a]")
    show_table(["name", "value"], [[each, 3] for each in texts], title="[Scores]")
    output = capsys.readouterr()
    assert output.out == ""
    for each in (*texts, "[Scores]"):
        assert each in output.err


def test_messages_keep_what_looks_like_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    show_error("form:id:7 :key:")
    assert capsys.readouterr().err == "Error: form:id:7 :key:\n"


def test_training_bar_says_every_evaluation_and_draws_nothing_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TrainingBar() as bar:
        for step in (1, 2):
            bar.on_step(StepDone(step, 2, 0.5, 1e-4, gradient_norm=1.0, tokens=100, seconds=0.1))
        bar.on_evaluation(1, 2, Evaluated(score=0.75, loss=0.5))
    assert capsys.readouterr().err == "Epoch 1, step 2: validation score 0.7500, loss 0.5000.\n"


def test_training_bar_on_a_terminal_shows_loss_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("lushan.cli.console.console", terminal)
    with TrainingBar() as bar:
        bar.on_step(StepDone(1, 2, 0.5, 1e-4, gradient_norm=1.0, tokens=100, seconds=0.1))
    assert "loss 0.500, 1,000 tokens/s" in screen.getvalue()
    assert "1/2" in screen.getvalue()


def test_outcome_has_the_corrected_p_and_systems_without_a_score(
    capsys: pytest.CaptureFixture[str],
) -> None:
    score = {"f1": {"value": 0.75, "low": 0.5, "high": 0.875}}
    show_outcome({
        "run": "runs/a",
        "main_metric": "f1",
        "before": {},
        "baselines": {"majority": score},
        "after": score,
        "comparisons": {"majority": {"p_value": 0.03, "p_value_holm": 0.06}},
        "num_examples": {"test": 8},
    })
    told = capsys.readouterr().err
    rows = [[cell.strip() for cell in re.split("\u2502", line)[1:-1]] for line in told.split("\n")]
    assert ["before", "-", "", ""] in rows
    assert ["majority", "0.750", "0.500 to 0.875", "0.06"] in rows
