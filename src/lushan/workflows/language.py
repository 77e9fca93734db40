"""Whether a model is for the language of the rows, as far as the catalogue says."""

from collections.abc import Sequence

from lushan.backbones.sources import CATALOG, catalogue_name
from lushan.data.words import chinese_fraction
from lushan.records import Example

_SOME_ROWS = 500
"""So many, from all over, stand for all."""
_MOST_LETTERS = 0.5


def notes_on_language(name: str, train: Sequence[Example], *, writes: bool) -> list[str]:
    """Tell where most letters of the training rows are Chinese, and the model is for English alone.

    Args:
        name: Of the model, as the recipe has it; of one that is not in the catalogue nothing is known.
        train: The training rows.
        writes: Whether answers are free texts, which may be Chinese where what is asked is not.
    """
    model = CATALOG.get(catalogue_name(name))
    if model is None or not model.knows_english_alone:
        return []
    rows = list(train[:: max(1, len(train) // _SOME_ROWS)])
    answers = [each.target for each in rows if isinstance(each.target, str)] if writes else []
    parts = {"texts": [each.text for each in rows], "answers": answers}
    chinese = [what for what, texts in parts.items() if chinese_fraction(texts) > _MOST_LETTERS]
    other = next(each.name for each in CATALOG.values() if "Chinese" in each.languages)
    return [
        f"Most letters of the training {what} are Chinese, and `{model.name}` is for English alone. `--model {other}` reads "
        f"Chinese; `lushan models get {other}` fetches it."
        for what in chinese[:1]
    ]
