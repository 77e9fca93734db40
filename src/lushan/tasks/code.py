"""Write Python programs, and run them against tests.

Columns: `prompt` (the beginning of a program, or what it should do in words), `reference` (how it goes on), `tests` (Python that
raises where the program is wrong); `entry_point` and `task_id` where they are known.

What a model writes is run: in a sandbox (`lushan/sandbox`), and only where the user allows it with `task_settings.run_code=true`.
The references of the first test rows are run before anything trains, so that tests that nothing can pass are found.
A prompt in words is shown as a docstring with the first test, which names the function, as the BigCode evaluation harness does.
"""

import ast
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from lushan import text_answers
from lushan.backbones.hardware import num_usable_threads
from lushan.data.columns import Columns
from lushan.errors import DataError, SettingError
from lushan.metrics.code import intervals, pass_at_k
from lushan.records import (
    AnswerMode,
    Example,
    Features,
    Prediction,
    Rendered,
    Row,
    Scores,
    TaskState,
    content_id,
)
from lushan.sandbox.run import Limits, Verdict, run_programs
from lushan.tasks import Outputs, Preparation, Wording

_STOP_STRINGS = (
    *("\ndef ", "\nclass ", "\nassert ", "\nif __name__", "\nprint(", '\n"""', "\n```", "\n@"),
    *("\n# ", "\nimport ", "\nfrom "),
)
"""What begins something else than the program that was asked for; those that training answers hold are left out."""
LIMITS = Limits()
"""What a program may use while it is scored."""
_KS = (1, 10, 100)
_NUM_PROVEN = 20
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DEFINITIONS = (*_NAMED, ast.Import, ast.ImportFrom, ast.Pass)
_QUOTES = '"""\n'
"""Stand around a task in words, which makes it a docstring."""
_BEGINS_CODE = ("def ", "class ", "import ", "from ", "@", "async def ")


class Task(text_answers.WritingTask):
    """Python programs, written by the model and run against tests.

    Columns: `prompt`, `reference`, `tests`, `entry_point`, `task_id`.
    """

    columns = Columns(
        required=("prompt", "reference", "tests"),
        optional=("entry_point", "task_id"),
        guesses={
            "reference": ("canonical_solution", "solution", "code"),
            "tests": ("test", "test_code"),
            "prompt": ("text", "description"),
        },
        asked_with=("tests",),
    )
    settings = frozenset({"num_shots", "instruction", "run_code"})
    baselines: tuple[str, ...] = ("nearest_answer",)
    wording = Wording(
        pipeline_tag="text-generation",
        use="Writing Python programs like those it was trained on. Run them only where they can do no harm.",
        label="code",
        counted="problems",
    )

    def read(self, row: Row, *, multi_label: bool = False, needs_target: bool = True) -> Example:
        """Check one row; its tests must be Python.

        Raises:
            DataError: If a column is missing, or the tests cannot be read or would test nothing.
        """
        prompt = _read_code(row, "prompt")
        tests = _read_code(row, "tests")
        tests = _with_what_runs_them(row, tests)
        extra = {"prompt": prompt, "tests": tests}
        if row.values.get("reference") in (None, "") and not needs_target:
            return Example(content_id(prompt, tests), prompt, None, row.place, extra, ())
        reference = _read_code(row, "reference").rstrip()
        return Example(
            content_id(prompt, tests, reference), prompt, reference, row.place, extra, ()
        )

    def prepare(
        self, examples: Sequence[Example], preparation: Preparation, *, multi_label: bool
    ) -> TaskState:
        """Draw the worked examples, and learn what ends a program.

        Raises:
            SettingError: If the user does not allow running what the model writes.
        """
        if not preparation.run_code:
            raise SettingError(
                "The task `code` runs what the model writes, in a sandbox that keeps out accidents and not attacks. "
                "Allow it with `--set task_settings.run_code=true`."
            )
        state = text_answers.learn_to_write(examples, preparation)
        stops = _STOP_STRINGS
        for each in examples:
            stops = tuple(stop for stop in stops if stop not in str(each.target))
        return replace(state, stop_strings=stops)

    def prove(self, examples: Sequence[Example]) -> list[str]:
        """Run the references of the first rows, and tell how many do not pass their own tests.

        Raises:
            DataError: If none does: then every program would fail.
        """
        known = [each for each in examples[:_NUM_PROVEN] if each.target is not None]
        programs = [_program(each, str(each.target)) for each in known]
        verdicts = zip(known, _run(programs), strict=True)
        failed = [(each.place, verdict.detail) for each, verdict in verdicts if not verdict.passed]
        if not failed:
            return []
        place, detail = failed[0]
        if len(failed) == len(known):
            raise DataError(
                f"{place}: the reference does not pass its own tests: {detail}. So it is with all of the first {len(known)} "
                "test row(s): every program would fail. Programs have the standard library of Python alone, and must "
                "come to the end of their tests. Mend `tests` or `reference`."
            )
        return [
            f"{len(failed)} of the first {len(known)} test row(s) have a reference that does not pass its own tests, so that "
            f"perhaps no program does. The first is {place}: {detail}."
        ]

    def render(
        self,
        example: Example,
        state: TaskState,
        *,
        answer: AnswerMode,
        with_target: bool,
        shots: Sequence[Example] = (),
    ) -> list[Rendered]:
        """The beginning of the program, or a docstring that says what it should do; its start may be cut."""
        opening = "" if state.instruction is None else f"{state.instruction}\n\n"
        earlier = "".join(f"{_shown(shot)}{shot.target}\n\n\n" for shot in shots)
        shown = _shown(example)
        prompt = f"{opening}{earlier}{shown}"
        cuttable = (len(prompt) - len(shown), len(prompt))
        quotes = 0 if _begins_code(example.extra.get("prompt", "")) else len(_QUOTES)
        rendered = Rendered(
            prompt,
            cuttable=cuttable,
            cuts_start=True,
            uncut="What is around it",
            given=((cuttable[0] + quotes, cuttable[1] - quotes),),
        )
        return [text_answers.told(rendered, str(example.target))] if with_target else [rendered]

    def decode(
        self,
        outputs: Outputs,
        features: Sequence[Features],
        examples: Sequence[Example],
        state: TaskState,
        *,
        answer: AnswerMode,
    ) -> list[Prediction]:
        """What was written, with the spaces at its start."""
        return text_answers.decode_written(outputs, examples, clean=str.rstrip)

    def score(
        self,
        predictions: Sequence[Prediction],
        examples: Sequence[Example],
        state: TaskState,
        *,
        seed: int = 0,
    ) -> Scores:
        """Run every program with its tests: `pass_at_1` first, and `pass_at_10` and so on where as many were drawn.

        A row is as good as the share of its programs that pass.
        """
        written = [each.samples or (str(each.answer),) for each in predictions]
        programs = [
            _program(example, text)
            for example, texts in zip(examples, written, strict=True)
            for text in texts
        ]
        verdicts = iter(_run(programs))
        found = [list(islice(verdicts, len(texts))) for texts in written]
        num_passed = [sum(each.passed for each in row) for row in found]
        num_samples = [len(row) for row in found]
        ks = [k for k in _KS if k <= min(num_samples)]
        passed = intervals(num_samples, num_passed, ks=ks, seed=seed)
        return Scores(
            main_metric="pass_at_1",
            metrics={
                **{name.replace("@", "_at_"): x for name, x in passed.items()},
                **text_answers.likelihoods(predictions, seed=seed),
            },
            correct=[pass_at_k(n, c, 1) for n, c in zip(num_samples, num_passed, strict=True)],
            details={**text_answers.details(predictions), **_told(chain.from_iterable(found))},
        )

    def sample_rows(self) -> list[Row]:
        """Six short functions."""
        samples = (
            ("add", "a, b", "a + b", "add(1, 2) == 3"),
            ("double", "x", "2 * x", "double(4) == 8"),
            ("first", "items", "items[0]", "first([5, 6]) == 5"),
            ("is_even", "n", "n % 2 == 0", "is_even(4)"),
            ("last", "items", "items[-1]", "last('ab') == 'b'"),
            ("square", "x", "x * x", "square(3) == 9"),
        )
        return [
            Row(
                {
                    "prompt": f"def {name}({arguments}):\n",
                    "reference": f"    return {result}\n",
                    "tests": f"assert {test}\n",
                    "entry_point": name,
                },
                "samples",
                number,
            )
            for number, (name, arguments, result, test) in enumerate(samples, start=1)
        ]


def _run(programs: Sequence[str]) -> list[Verdict]:
    return run_programs(programs, LIMITS, num_workers=num_usable_threads())


def _told(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """How the programs ended, and which protections this system could not give."""
    verdicts = list(verdicts)
    missing = {name for each in verdicts for name in each.unenforced}
    return {"outcomes": Counter(x.outcome for x in verdicts), "not_enforced": sorted(missing)}


def _read_code(row: Row, name: str) -> str:
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.place}: column `{name}` must hold a text, got {value!r}.")
    return value


def _with_what_runs_them(row: Row, tests: str) -> str:
    """Add the call that HumanEval leaves to its harness: its tests only define `check(candidate)`.

    Raises:
        DataError: If the tests are no Python, or nothing in them would run: every program would pass.
    """
    try:
        statements = ast.parse(tests).body
    except (SyntaxError, ValueError) as error:
        # A NUL character is a ValueError, or a SyntaxError without a line, by the version of Python.
        line = getattr(error, "lineno", None) or tests[: tests.find("\0")].count("\n") + 1
        reason = getattr(error, "msg", error)
        raise DataError(
            f"{row.place}: column `tests` is no Python: {reason} in line {line}."
        ) from None
    runs = any(map(_can_fail, statements))
    has_check = any(isinstance(x, ast.FunctionDef) and x.name == "check" for x in statements)
    if runs and (not has_check or "check" in _reached(statements)):
        return tests
    if not has_check:
        raise DataError(
            f"{row.place}: column `tests` tests nothing: it only defines, so that every program would pass. Call what "
            "it defines."
        )
    name = row.values.get("entry_point")
    if name in (None, ""):
        raise DataError(
            f"{row.place}: column `tests` tests nothing by its `check`, which is never called. Call it, or name the "
            "function that it is to be called with in a column `entry_point`."
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"{row.place}: column `entry_point` must name a function, got {name!r}.")
    return f"{tests.rstrip()}\n\n\ncheck({name})\n"


def _reached(statements: Sequence[ast.stmt]) -> set[str]:
    """Names that tests mention when they run: outside of what they define, and in those definitions that they mention."""
    defined = {x.name: x for x in statements if isinstance(x, _NAMED)}
    waiting: list[ast.stmt] = [x for x in statements if not isinstance(x, _DEFINITIONS)]
    found: set[str] = set()
    while waiting:
        names = {x.id for x in ast.walk(waiting.pop()) if isinstance(x, ast.Name)} - found
        found |= names
        waiting += [defined[name] for name in names if name in defined]
    return found


def _can_fail(statement: ast.stmt) -> bool:
    """Whether a statement runs something of its own; definitions, imports and plain values do not."""
    if isinstance(statement, _DEFINITIONS):
        return False
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr):
        return any(isinstance(each, ast.Call) for each in ast.walk(statement))
    return True


@lru_cache(maxsize=1024)
def _begins_code(prompt: str) -> bool:
    """Whether a prompt is the beginning of a program, and not a task in words."""
    lines = prompt.rstrip().splitlines()
    if not any(line.startswith(_BEGINS_CODE) for line in lines):
        return False
    indent = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
    bodies = ("", "pass", f"\n{indent}    pass")
    return any(_is_python(prompt + body) for body in bodies)


def _is_python(program: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown escape in a text is nobody's business here
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _shown(example: Example) -> str:
    prompt: Any = example.extra.get("prompt", "")
    if _begins_code(prompt):
        return prompt
    first_test = example.extra.get("tests", "").strip().split("\n")[0]
    return f"{_QUOTES}{prompt.strip()}\n{first_test}\n{_QUOTES}"


def _program(example: Example, written: str) -> str:
    prompt: Any = example.extra["prompt"]
    start = prompt if _begins_code(prompt) else ""
    return f"{start}{written}\n\n{example.extra['tests']}\n"
