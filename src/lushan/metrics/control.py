"""Whether a text keeps to what it was asked to be: keywords, length, words it must or must not have, its form."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lushan.metrics.pieces import pieces

LENGTH_TOLERANCE = 0.2
"""A text may be so much longer or shorter than asked, and at least two words."""


def satisfied_shares(answers: Sequence[str], controls: Sequence[Mapping[str, Any]]) -> list[float]:
    """Give the share of its checkable control fields that each text keeps; rows without any are left out.

    Topic and tone are not checked: that would need a judge.

    Args:
        answers: What was written.
        controls: `keywords`, `length`, and `form` with `must`, `must_not`, `regex`, `json_schema`; each where it is asked.
    """
    checked = [_checks(answer, control) for answer, control in zip(answers, controls, strict=True)]
    return [sum(each) / len(each) for each in checked if each]


def _checks(answer: str, control: Mapping[str, Any]) -> list[bool]:
    form: Mapping[str, Any] = control.get("form", {})
    text = answer.casefold()
    found = [word.casefold() in text for word in control.get("keywords", ())]
    found += [word.casefold() in text for word in form.get("must", ())]
    found += [word.casefold() not in text for word in form.get("must_not", ())]
    if "length" in control:
        wanted = control["length"]
        allowed = max(2, LENGTH_TOLERANCE * wanted)
        found.append(abs(len(pieces(answer)) - wanted) <= allowed)
    if "regex" in form:
        found.append(re.fullmatch(form["regex"], answer, re.DOTALL) is not None)
    if "json_schema" in form:
        found.append(_is_json(answer))
    return found


def _is_json(answer: str) -> bool:
    """Whether a text is JSON to its end; that it fits its schema is held while it is written."""
    try:
        json.loads(answer)
    except ValueError:
        return False
    return True
