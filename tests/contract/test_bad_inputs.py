"""Bad data of every kind: one clear message, exit code 2, nothing written."""

import json
import re
from pathlib import Path

import pytest

from lushan.catalog import load_task
from lushan.cli.main import run
from lushan.errors import DataError
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import make_recipe
from tests.bad_inputs import BAD_INPUTS, BadInput, good_rows, write_lines

every_bad_input = pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)


@every_bad_input
def test_bad_data_is_refused_in_one_line_that_says_where_and_what(
    bad: BadInput, tmp_path: Path
) -> None:
    data = bad.build(tmp_path)
    recipe = make_recipe(None, {}, bad.settings)
    with pytest.raises(DataError) as caught:
        prepare(data, task=load_task(bad.task), recipe=recipe)
    message = str(caught.value)
    assert re.search(bad.message, message), message
    assert "\n" not in message


@every_bad_input
def test_check_exits_2_on_bad_data_with_its_message_and_writes_nothing(
    bad: BadInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = bad.build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    options = [f"--set={assignment}" for assignment in bad.settings]
    assert run(["check", str(data), "--task", bad.task, *options, "--json"]) == 2
    output = capsys.readouterr()
    assert re.search(bad.message, json.loads(output.out)["error"])
    assert "Traceback" not in output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_bad_inputs_are_made_from_are_good_themselves(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    prepared = prepare(data, task=load_task("classification"), recipe=make_recipe(None, {}, []))
    assert len(prepared.parts.train) > 20
    assert prepared.overlap.lines() == []
