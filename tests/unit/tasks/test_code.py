"""Code: what is asked, what is run, and that nobody's program runs unasked."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lushan.data import example_store
from lushan.data.example_store import ExampleStore
from lushan.errors import DataError, SettingError
from lushan.records import Example, Prediction, Row, TaskState
from lushan.sandbox.run import Limits, Verdict, run_programs
from lushan.tasks import Preparation
from lushan.tasks.code import LIMITS, Task

TASK = Task()
STATE = TaskState()
VALUES = {
    "prompt": "def add(a, b):\n",
    "reference": "    return a + b\n",
    "tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0\n",
}
IN_WORDS = {
    **VALUES,
    "prompt": "Write a function to add.",
    "reference": "def add(a, b):\n    return a + b",
}


def read(**values: object) -> Example:
    return TASK.read(Row({**VALUES, **values}, "a.jsonl", 7))


def shown(example: Example, **options: object) -> str:
    (found,) = TASK.render(example, STATE, answer="generate", **{"with_target": False, **options})
    return found.text


def outcome(example: Example, *programs: str) -> dict[str, float]:
    prediction = Prediction(example.id, programs[0], samples=programs if len(programs) > 1 else ())
    scores = TASK.score([prediction], [example], STATE)
    assert scores.correct == [scores.metrics["pass_at_1"].value]
    return {name: each.value for name, each in scores.metrics.items()}


def test_beginning_of_a_program_is_asked_as_it_is_and_a_task_in_words_as_a_docstring() -> None:
    assert shown(read()) == "def add(a, b):\n"
    assert shown(read(), with_target=True) == "def add(a, b):\n    return a + b"
    expected = '"""\nWrite a function to add.\nassert add(1, 2) == 3\n"""\n'
    assert shown(read(**IN_WORDS)) == expected
    assert shown(read(), shots=[read(**IN_WORDS)]) == (
        f"{expected}def add(a, b):\n    return a + b\n\n\ndef add(a, b):\n"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "Return the words\nfrom a list that are long.",
        "import numbers and add them",
        "class is a word: count it in a text",
        "@ is to be counted in a text",
        "from the list [1, 2] take the last",
    ],
)
def test_task_in_words_is_one_whatever_its_lines_begin_with(prompt: str) -> None:
    example = read(**{**IN_WORDS, "prompt": prompt})
    assert shown(example) == f'"""\n{prompt}\nassert add(1, 2) == 3\n"""\n'
    assert outcome(example, "def add(x, y): return x + y")["pass_at_1"] == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "def add(a, b):",
        "def add(a, b):\n    ",
        'import re\n\n\ndef add(a, b):\n    """Say \\d."""\n',
        "class Adder:\n    def add(self, a, b):\n        # go on\n",
        "@cache\nasync def add(a, b):\n\tfor each in (a, b):\n",
    ],
)
def test_beginning_of_a_program_is_one_where_a_body_is_all_that_it_lacks(prompt: str) -> None:
    assert shown(read(prompt=prompt)) == prompt


@pytest.mark.parametrize(
    ("values", "program", "passes"),
    [
        (VALUES, "    return a + b", True),
        (VALUES, "    return a - b", False),
        (VALUES, "    return a +", False),
        (VALUES, "    import sys; sys.exit(0)", False),
        (VALUES, "    while True: pass", False),
        (IN_WORDS, "def add(x, y): return x + y", True),
        (IN_WORDS, "add = 3", False),
    ],
)
def test_program_passes_when_its_tests_run_to_their_end(
    values: dict[str, str], program: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lushan.tasks.code.LIMITS", replace(LIMITS, cpu_seconds=1, wall_seconds=3.0)
    )
    assert outcome(read(**values), program)["pass_at_1"] == float(passes)


def test_check_of_humaneval_is_called_with_the_entry_point() -> None:
    published = "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
    example = read(tests=published, entry_point="add")
    assert outcome(example, "    return 99")["pass_at_1"] == 0.0
    assert outcome(example, "    return a + b")["pass_at_1"] == 1.0
    called = f"{published}\n\ncheck(add)\n"
    assert read(tests=called, entry_point="add").extra["tests"] == called


CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"


@pytest.mark.parametrize(
    "beside",
    [
        "print('begin')\n",
        "CASES = list(range(3))\n",
        "assert add(0, 0) == 0\n",
        "def begin():\n    print('begin')\n\n\nbegin()\n",
        "def unused():\n    check(add)\n\n\nprint('begin')\n",
    ],
)
def test_check_that_nothing_calls_is_called_whatever_else_runs(beside: str) -> None:
    example = read(tests=beside + CHECK, entry_point="add")
    assert outcome(example, "    return a - b")["pass_at_1"] == 0.0
    assert outcome(example, "    return a + b")["pass_at_1"] == 1.0
    told = r"a\.jsonl, row 7: column `tests` tests nothing by its `check`, which is never called"
    with pytest.raises(DataError, match=told):
        read(tests=beside + CHECK)


@pytest.mark.parametrize(
    "call",
    [
        "check(add)\n",
        "if True:\n    check(add)\n",
        "for each in (add,):\n    check(each)\n",
        "def run():\n    check(add)\n\n\nrun()\n",
        "run = check\nrun(add)\n",
    ],
)
def test_check_that_is_called_is_called_no_second_time(call: str) -> None:
    assert read(tests=CHECK + call).extra["tests"] == CHECK + call
    assert read(tests=CHECK + call, entry_point="add").extra["tests"] == CHECK + call


def test_pass_at_k_is_told_of_several_samples() -> None:
    programs = ["    return 0"] * 9 + ["    return a + b"]
    found = outcome(read(), *programs)
    assert found["pass_at_1"] == pytest.approx(0.1)
    assert found["pass_at_10"] == 1.0
    assert "pass_at_100" not in found


def test_no_more_programs_run_at_once_than_this_process_may_use_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []

    def run(programs: Sequence[str], limits: Limits, *, num_workers: int) -> list[Verdict]:
        told.append(num_workers)
        return run_programs(programs, limits, num_workers=num_workers)

    monkeypatch.setattr("lushan.tasks.code.num_usable_threads", lambda: 3)
    monkeypatch.setattr("lushan.tasks.code.run_programs", run)
    assert outcome(read(), "    return a + b")["pass_at_1"] == 1.0
    assert TASK.prove([read()]) == []
    assert told == [3, 3]


def test_how_programs_ended_is_told() -> None:
    examples = [read(), read(tests="assert add(2, 2) == 5")]
    predictions = [Prediction(each.id, "    return a + b") for each in examples]
    details = TASK.score(predictions, examples, STATE).details
    assert details["outcomes"] == {"passed": 1, "failed": 1}


def test_nothing_is_run_unless_the_user_allows_it() -> None:
    with pytest.raises(SettingError, match=r"Allow it with `--set task_settings.run_code=true`"):
        TASK.prepare([read()], Preparation(), multi_label=False)


def test_tests_that_no_reference_passes_are_refused() -> None:
    needs = read(tests="import numpy\nassert add(1, 2) == 3\n")
    leaves = read(tests="import unittest\nunittest.main()\n")
    told = r"row 7: the reference does not pass its own tests: ModuleNotFoundError: .*'numpy'\. So it is with all of the first 2"
    with pytest.raises(DataError, match=told):
        TASK.prove([needs, leaves])
    with pytest.raises(DataError, match=r"own tests: SystemExit: .*, before its end\."):
        TASK.prove([leaves])


def test_references_that_do_not_pass_are_counted_and_the_first_is_named() -> None:
    wrong = read(reference="    return a - b")
    (note,) = TASK.prove([read(), replace(wrong, place="a.jsonl, row 9"), wrong])
    assert note.startswith("2 of the first 3 test row(s) have a reference that does not pass its")
    assert "The first is a.jsonl, row 9: AssertionError" in note
    assert TASK.prove([read(), read(**IN_WORDS)] * 10 + [wrong]) == []
    assert TASK.prove([]) == []


def test_program_ends_where_something_else_begins_unless_training_has_that() -> None:
    allowed = Preparation(run_code=True)
    stops = TASK.prepare([read()], allowed, multi_label=False).stop_strings
    assert "\ndef " in stops
    with_helper = read(reference="    return plus(a, b)\n\n\ndef plus(a, b):\n    return a + b\n")
    assert "\ndef " not in TASK.prepare([with_helper], allowed, multi_label=False).stop_strings
    assert "\ndef " in TASK.prepare([read(**IN_WORDS)], allowed, multi_label=False).stop_strings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tests": "assert ("}, "column `tests` is no Python: .* in line 1"),
        ({"tests": "assert 1\n\0"}, "column `tests` is no Python: .* null bytes in line 2"),
        ({"tests": ""}, "column `tests` must hold a text"),
        ({"tests": "# nothing"}, "column `tests` tests nothing"),
        (
            {"tests": "import math\ndef test_add():\n    assert add(1, 2) == 3"},
            "column `tests` tests nothing",
        ),
        (
            {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3"},
            "column `tests` tests nothing",
        ),
        (
            {"tests": "def check(f):\n    assert f(1)", "entry_point": "a b"},
            "column `entry_point` must name",
        ),
        ({"prompt": 3}, "column `prompt` must hold a text"),
        ({"reference": " "}, "column `reference` must hold a text"),
    ],
)
def test_row_that_cannot_be_run_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, row 7: {message}"):
        read(**values)


def test_references_of_all_rows_are_not_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_store, "_ROWS_PER_READ", 16)
    rows = ExampleStore.collect(
        read(reference="    x = 1\n" * 2_000 + f"    return {n}") for n in range(400)
    )
    tracemalloc.start()
    TASK.prepare(rows, Preparation(run_code=True), multi_label=False)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 4 * 2**20
