"""A table of rows becomes a file of answers, one a row, as `lushan predict` writes it."""

import asyncio
import json
from pathlib import Path

import pytest

from lushan.errors import DataError
from lushan.serving.hosted import HostedModel
from lushan.serving.page import file_tab
from lushan.serving.page.file_tab import Progress, answer_file
from lushan.serving.page.studio import Studio
from lushan.workflows.predict import open_run, predict
from tests.bad_inputs import good_rows, write_lines
from tests.unit.serving.page.conftest import MakeStudio


async def answer_whole(
    studio: Studio, model: HostedModel, table: Path, target: Path
) -> list[Progress]:
    return [progress async for progress in answer_file(studio, model, table, target)]


def test_answers_are_those_of_the_command_line(
    make_studio: MakeStudio, tuned: HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tab, "ROWS_AT_ONCE", 7)
    rows = [{"words": row["text"]} for row in good_rows()]
    table = write_lines(tmp_path / "reviews.jsonl", rows)
    target = tmp_path / "answers.jsonl"
    told = asyncio.run(answer_whole(make_studio(tuned), tuned, table, target))
    expected: list[str] = []
    assert tuned.run is not None
    predict(open_run(tuned.run), table, write=expected.extend)
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    wanted = [json.loads(line) for line in expected]
    for one, other in zip(found, wanted, strict=True):
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-5)
        assert one.pop("log_likelihood") == pytest.approx(other.pop("log_likelihood"), abs=1e-5)
        assert one == other
    assert told[0] == Progress(0, len(rows))
    assert told[-1] == Progress(len(rows), len(rows))


def test_table_that_does_not_fit_is_refused_before_anything_is_answered(
    make_studio: MakeStudio, tuned: HostedModel, tmp_path: Path
) -> None:
    table = write_lines(tmp_path / "a.jsonl", [{"amount": "1"}])
    target = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=r"says `words`, but there is no such column"):
        asyncio.run(answer_whole(make_studio(tuned), tuned, table, target))
    assert not target.exists()
