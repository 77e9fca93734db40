"""`/v1/predict/{model}`: rows in, predictions out, for every task, as `lushan predict` writes them."""

from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Body, Request

from lushan.records import Example, Row, plain_prediction
from lushan.serving.connection import while_connected
from lushan.serving.errors import RequestError
from lushan.serving.hosted import HostedModel, find_model
from lushan.serving.observation import note

router = APIRouter()

MOST_ROWS = 1024

AskedRow = str | dict[str, Any]
Answer = dict[str, Any]


@router.post(
    "/v1/predict/{model}", summary="Answers of a tuned model, for one row or a list of rows"
)
async def predict(
    request: Request,
    model: str,
    rows: Annotated[
        AskedRow | Annotated[list[AskedRow], Body(min_length=1, max_length=MOST_ROWS)],
        Body(
            description="A row with the task's columns, or a text where the task reads one text; or a list of either.",
            examples=[[{"text": "A great film!"}, {"text": "The soup was cold."}]],
        ),
    ],
) -> Answer | list[Answer]:
    """Answer rows in order; `row` is the number of a row in the request, from 1.

    Where a row was too long and was cut, `num_cut_tokens` tells how many tokens of it were not read.
    """
    hosted = find_model(request.app.state.models, model)
    asked = rows if isinstance(rows, list) else [rows]
    examples = await anyio.to_thread.run_sync(partial(read_rows, hosted, asked))
    note(request.scope, model=model, rows=len(examples))
    predictions = await while_connected(request, request.app.state.worker.predict(hosted, examples))
    if request.app.state.settings.log_texts:
        note(request.scope, asked=asked, answered=[each.answer for each in predictions])
    answers = [{"row": n, **plain_prediction(each)} for n, each in enumerate(predictions, start=1)]
    return answers if isinstance(rows, list) else answers[0]


def read_rows(model: HostedModel, rows: list[AskedRow]) -> list[Example]:
    """Have a model's task read rows.

    Raises:
        DataError: If one does not fit; names it.
        RequestError: If one has a column that the task does not know.
    """
    predictor = model.predictor
    columns = predictor.task.columns
    examples: list[Example] = []
    for number, row in enumerate(rows, start=1):
        values = row if isinstance(row, dict) else {columns.required[0]: row}
        if unknown := values.keys() - set(columns.all_names):
            known = ", ".join(columns.all_names)
            raise RequestError(
                f"Row {number} has the column `{min(unknown):.100}`, which `{model.name}` does not read. Known: {known}."
            )
        read = Row(values, "request", number)
        examples.append(
            predictor.task.read(read, multi_label=predictor.state.multi_label, needs_target=False)
        )
    return examples
