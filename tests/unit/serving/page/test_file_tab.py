"""A table of rows becomes a file of answers, one a row, as `lushan predict` writes it."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.errors import DataError
from lushan.records import Example, Prediction
from lushan.serving.errors import ServerBusyError
from lushan.serving.hosted import HostedModel
from lushan.serving.page import file_tab
from lushan.serving.page.file_tab import Progress, _Answering, answer_file
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts
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
    studio = make_studio(tuned)
    told = asyncio.run(answer_whole(studio, tuned, table, target))
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
    assert studio.app.state.worker.num_admitted == 1  # no row is refused once others are answered


def test_table_that_does_not_fit_is_refused_before_anything_is_answered(
    make_studio: MakeStudio, tuned: HostedModel, tmp_path: Path
) -> None:
    table = write_lines(tmp_path / "a.jsonl", [{"amount": "1"}])
    target = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=r"says `words`, but there is no such column"):
        asyncio.run(answer_whole(make_studio(tuned), tuned, table, target))
    assert not target.exists()


def test_row_that_is_too_long_is_found_before_any_is_answered(
    make_studio: MakeStudio, tuned: HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tab, "ROWS_AT_ONCE", 1)
    predictor = replace(tuned.predictor, limit=LengthLimit(60, "error"))
    model = replace(tuned, predictor=predictor)
    table = write_lines(tmp_path / "a.jsonl", [{"words": "ran"}, {"words": "ran home " * 100}])
    target = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match="row 2"):
        asyncio.run(answer_whole(make_studio(model), model, table, target))
    assert not target.exists()


def test_what_was_answered_before_an_error_is_handed_out_with_it(
    make_studio: MakeStudio, tuned: HostedModel, english: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = make_studio(tuned)
    ask, num_calls = studio.worker.predict, itertools.count()

    async def fail_later(
        model: HostedModel, examples: Sequence[Example], **_: object
    ) -> list[Prediction]:
        if next(num_calls) == 2:
            raise ServerBusyError
        return await ask(model, examples)

    async def last_shown() -> tuple[str, list[str]]:
        async for status, result in _Answering(studio, english).answer("tiny", str(table)):
            if "value" in result:
                return status, Path(result["value"]).read_text(encoding="utf-8").splitlines()
        return "", []

    monkeypatch.setattr(file_tab, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(studio.worker, "predict", fail_later)
    rows = [{"words": row["text"]} for row in good_rows()]
    table = write_lines(studio.needed_store() / "a.jsonl", rows)
    status, lines = asyncio.run(last_shown())
    assert [json.loads(line)["row"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "The server is busy" in status
    assert f"6 of {len(good_rows())} rows" in status


def test_rows_that_were_cut_are_counted(
    make_studio: MakeStudio, tuned: HostedModel, english: Texts
) -> None:
    limit = LengthLimit(60, "truncate")
    model = replace(tuned, predictor=replace(tuned.predictor, limit=limit))
    studio = make_studio(model)

    async def last_said(table: Path) -> str:
        answers = _Answering(studio, english).answer("tiny", str(table))
        return [status async for status, _ in answers][-1]

    def table(name: str, *texts: str) -> Path:
        return write_lines(studio.needed_store() / name, [{"words": each} for each in texts])

    long = "ran home " * 100
    said = asyncio.run(last_said(table("a.jsonl", "ran", long, long)))
    assert "3 rows answered." in said
    assert "Rows that are longer than the model reads, and were cut: 2." in said
    assert "cut" not in asyncio.run(last_said(table("b.jsonl", "ran")))
