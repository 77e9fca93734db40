"""What an answer may look like: a JSON Schema, a regular expression, or one of several texts, by llguidance.

Shapes: V vocabulary.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, SettingError
from lushan.records import Example


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that answers must have, for any tokenizer. Make it with one of the class methods."""

    grammar: str
    """The form, as llguidance writes it."""
    source: str
    """What it was made from, for messages."""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Self:
        """Allow JSON values that a schema accepts."""
        source = json.dumps(schema, ensure_ascii=False)
        return cls(LLMatcher.grammar_from_json_schema(source), f"JSON Schema `{source}`")

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Allow texts that a regular expression matches as a whole (Rust syntax, no look-around)."""
        return cls(LLMatcher.grammar_from_regex(pattern), f"regular expression `{pattern}`")

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Self:
        """Allow exactly these texts.

        Raises:
            SettingError: If there are none, or one is empty.
        """
        if not texts or not all(texts):
            raise SettingError(f"A choice needs texts that are not empty; got {list(texts)!r}.")
        lark = "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in texts)
        return cls(LLMatcher.grammar_from_lark(lark), f"choice of {len(texts)} texts")

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """Allow what a grammar allows, in llguidance's dialect of Lark."""
        return cls(LLMatcher.grammar_from_lark(grammar), "grammar of the task")

    @classmethod
    def form(cls, form: Mapping[str, Any], *, most_tokens: int) -> Self:
        """Allow what a form (`records.FORM_FIELDS`) allows, behind the space that parts an answer from its prompt.

        Words are looked for in any case, also inside of longer words. Without an expression the answer is one paragraph.

        Args:
            form: What the answer must keep to.
            most_tokens: Tokens that it may have. Words that it must have begin so early that they fit, if no character takes
                more than a token.
        """
        if "json_schema" in form:
            schema = json.dumps(form["json_schema"], ensure_ascii=False)
            lark = f'start: " "? value\nvalue: %json {schema}\n'
            return cls(LLMatcher.grammar_from_lark(lark), f"JSON Schema `{schema}`")
        parts = [f"( )?(?:{form['regex']})" if "regex" in form else ".*"]
        must = form.get("must", ())
        most_before = max(0, most_tokens - sum(map(len, must)) - 1)
        parts += [f"(?is:.{{0,{most_before}}}{re.escape(word)}.*)" for word in must]
        terms = [_expression(part) for part in parts]
        terms += [
            f"~{_expression(f'(?is:.*{re.escape(word)}.*)')}" for word in form.get("must_not", ())
        ]
        lark = f"start: ANSWER\nANSWER: {' & '.join(terms)}\n"
        return cls(
            LLMatcher.grammar_from_lark(lark), f"form {json.dumps(dict(form), ensure_ascii=False)}"
        )

    def check(self) -> None:
        """Find out whether answers can have this form, before any is written.

        Raises:
            SettingError: If it is no valid schema or expression.
        """
        if told := LLMatcher.validate_grammar(self.grammar):
            raise SettingError(f"The {self.source} cannot be used: {told.strip().splitlines()[0]}")


def check_forms(examples: Iterable[Example], *, most_tokens: int) -> None:
    """Find forms of rows that no answer can have, before any is written.

    Args:
        examples: Rows; what `Constraint.form` takes is in their `extra`.
        most_tokens: Tokens that an answer may have.

    Raises:
        DataError: If there is one; names the row.
    """
    for each in examples:
        if form := each.extra.get("form"):
            try:
                _check_form(json.dumps(form, sort_keys=True), most_tokens)
            except SettingError as error:
                raise DataError(
                    f"{each.place}: the form of the answer cannot be held. {error}"
                ) from None


@lru_cache(maxsize=1024)
def _check_form(form: str, most_tokens: int) -> None:
    """Check a form, written as JSON; many rows have the same."""
    Constraint.form(json.loads(form), most_tokens=most_tokens).check()


def _expression(pattern: str) -> str:
    """Write a regular expression between the slashes of a grammar."""
    return "/" + re.sub(r"(?<!\\)/", r"\/", pattern).replace("\n", "\\n") + "/"


class GrammarState:
    """How far one answer has come in its form."""

    def __init__(self, matcher: LLMatcher, source: str, stop_ids: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._source = source
        self._stop_ids = stop_ids

    @classmethod
    def start(
        cls,
        constraint: Constraint,
        tokenizer: Tokenizer,
        *,
        vocabulary_size: int,
        stop_ids: frozenset[int],
    ) -> Self:
        """Begin an answer.

        Args:
            constraint: The form.
            tokenizer: The model's tokenizer.
            vocabulary_size: V, the tokens that the model scores.
            stop_ids: Tokens that end an answer; allowed where the form is complete.

        Raises:
            SettingError: If the form is no valid schema or expression, or the model has no stop token.
        """
        if not stop_ids:
            raise SettingError("A constrained answer needs a model with a stop token.")
        ends = tuple(sorted(stop_ids))
        table = _token_table(tokenizer, vocabulary_size, ends)
        state = cls(LLMatcher(table, constraint.grammar, log_level=0), constraint.source, ends)
        state._check()
        return state

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise SettingError(f"The {self._source} cannot be used: {reason}")

    def copy(self) -> "GrammarState":
        """Give a second state that goes its own way from here."""
        return GrammarState(self._matcher.deep_copy(), self._source, self._stop_ids)

    def allowed(self, vocabulary_size: int) -> Tensor:
        """Tell which tokens may come next; (V,), bool.

        Raises:
            SettingError: If no token leads on, or the form is too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, bitorder="little")[:vocabulary_size].astype(bool)
        # A stop token may also be text; it still ends the answer, so it must not come early.
        ends = [token_id for token_id in self._stop_ids if token_id < vocabulary_size]
        allowed_V[ends] = self._matcher.is_accepting()
        if not allowed_V.any():
            raise SettingError(f"The {self._source} cannot be completed with this model's tokens.")
        return torch.from_numpy(allowed_V)

    def push(self, token_id: int) -> None:
        """Go on by one allowed token."""
        self._matcher.consume_token(token_id)
        self._check()


@lru_cache(maxsize=4)
def _token_table(
    tokenizer: Tokenizer, vocabulary_size: int, stop_ids: tuple[int, ...]
) -> LLTokenizer:
    size = max(vocabulary_size, tokenizer.vocabulary_size)
    return LLTokenizer(tokenizer.to_json(), n_vocab=size, eos_token=list(stop_ids))
