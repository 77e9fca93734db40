"""Wrong command lines of every command: one clear message, exit code 2, nothing written or changed."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lushan.backbones.sources import models_folder
from lushan.cli.main import command_names, run
from tests.bad_commands import OTHERS, BadCommand, bad
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny

RECIPES = {
    "brackets.yaml": "training: {epochs: 3\n",
    "list.yaml": "- training\n- epochs\n",
    "unknown.yaml": "trainig:\n  epochs: 3\n",
    "type.yaml": "training:\n  epochs: three\n",
    "part.yaml": "training: 3\n",
    "twice.yaml": "training:\n  epochs: 3\n  epochs: 4\n",
}
"""Files that are no recipe, by the mistake in them."""

OPTIONS = (
    bad("tyr rows.jsonl", "Unknown command `tyr`", "Known: augment, chat, check, compare", "tune"),
    bad("Tune rows.jsonl", "Unknown command `Tune`", "tune"),
    bad("--unknown", "--unknown", "`lushan --help` shows"),
    bad("--seed 3 tune rows.jsonl", "No such option: --seed", "`lushan --help` shows"),
    bad("models lst", "No such command 'lst'", "Did you mean 'list'?", "`lushan models --help`"),
    bad("tune", "Missing argument 'DATA'", "`lushan tune --help` shows"),
    bad("predict run", "Missing argument 'INPUT'", "`lushan predict --help` shows"),
    bad("compare", "Missing argument 'RUN RUN...'", "`lushan compare --help` shows"),
    bad("models show", "Missing argument 'NAME'", "`lushan models show --help` shows"),
    bad(
        "check rows.jsonl words.jsonl", "unexpected extra argument(s) (words.jsonl)", "check --help"
    ),
    bad("demo rows.jsonl", "unexpected extra argument(s) (rows.jsonl)", "`lushan demo --help`"),
    bad("tune rows.jsonl --epoch 3", "No such option: --epoch", "--epochs", "`lushan tune --help`"),
    bad("doctor --agian", "No such option: --agian", "--again", "`lushan doctor --help`"),
    bad("tune rows.jsonl --task", "'--task' requires an argument", "`lushan tune --help`"),
    bad("compare run same --data", "'--data' requires an argument", "`lushan compare --help`"),
    bad(
        "tune rows.jsonl --out --overwrite", "'--out' requires an argument", "'--overwrite' follows"
    ),
    bad("models get mine --source --retie", "'--source' requires", "'--retie' follows"),
    bad("tune rows.jsonl --resume=yes", "'--resume' does not take a value", "`lushan tune --help`"),
    bad("tune rows.jsonl --seed x", "'--seed'", "valid integer", "Got 'x'", "`lushan tune --help`"),
    bad("evaluate run words.jsonl --seed 1.5", "'--seed'", "valid integer", "Got '1.5'"),
    bad("tune rows.jsonl --epochs many", "'--epochs'", "valid integer", "Got 'many'"),
    *(
        bad(f"{line} --seed -1", "'--seed'", "greater than or equal to 0", "Got '-1'", "--help`")
        for line in ("tune rows.jsonl", "predict run words.jsonl", "demo", "doctor", "models list")
    ),
    bad("tune rows.jsonl --seed 9223372036854775808", "`seed`", "less than", "Got 92233720368547"),
)
"""What the command line itself refuses."""

SETTINGS = (
    bad(
        "tune rows.jsonl --task telepathy",
        "Unknown task `telepathy`",
        "Known: answering, choice, classification",
    ),
    bad("tune rows.jsonl --effort max", "`effort`", "'quick', 'normal' or 'thorough'", "Got 'max'"),
    bad("tune rows.jsonl --answer both", "`answer`", "'head' or 'generate'", "Got 'both'"),
    bad("tune rows.jsonl --budget 8", "`--budget 8`", "expected a time", "`8m`"),
    bad(
        "tune rows.jsonl --adapter top:x", "`--adapter top:x`", "`full`, `lora`, `head` or `top:N`"
    ),
    bad(
        "tune rows.jsonl --adapter top:0", "`adapter.layers`", "greater than or equal to 1", "Got 0"
    ),
    bad("tune rows.jsonl --model tiny --adapter top:999", "`--adapter top:999`", "only 2 layers"),
    bad("tune rows.jsonl --epochs 0 --set seed=1", "options: ", "`training.epochs`", "Got 0"),
    bad("tune rows.jsonl --set training.epochs", "`--set training.epochs`", "`part.name=value`"),
    bad(
        "tune rows.jsonl --set training..epochs=3",
        "`--set training..epochs=3`",
        "`part.name=value`",
    ),
    bad("tune rows.jsonl --set training.epochs=[3", "training.epochs=[3", "`[3` is no YAML value"),
    bad("tune rows.jsonl --set task=2026-02-31", "`--set task=2026-02-31`", "is no YAML value"),
    bad("tune rows.jsonl --set training.epoch=3", "`training.epoch`", "mean `training.epochs`?"),
    bad("tune rows.jsonl --set epochs=3", "--set: unknown", "`epochs`", "mean `training.epochs`?"),
    bad("check rows.jsonl --set trainig.epochs=3", "`trainig`", "Did you mean `training`?"),
    bad("tune rows.jsonl --set adapter=lora", "`adapter`", "`adapter.NAME=VALUE`", "Got 'lora'"),
    bad("tune rows.jsonl --set training.optimizer=foo", "optimizer`", "'adafactor' or 'sgd'"),
    bad("tune rows.jsonl --set training.epochs=2.5", "`training.epochs`", "integer", "Got 2.5"),
    bad("tune rows.jsonl --set training.learning_rate=-1", "_rate`", "greater than 0", "Got -1"),
    bad("tune rows.jsonl --set training.learning_rate=nan", "_rate`", "finite number", "Got nan"),
    bad(
        "tune rows.jsonl --set model.head_dropout=1.5", "`model.head_dropout`", "less than 1", "1.5"
    ),
    bad("tune rows.jsonl --set data.columns.text=yes", "`data.columns.text`", "Got True", "quotes"),
    bad("check rows.jsonl --set data.columns.txt=body", "`txt`", "Its columns: `text`, `label`"),
    bad(
        "check rows.jsonl --set data.columns.text=label",
        *(
            "rows.jsonl",
            "`text`, `label`",
            "the same column, `label`",
            "--set data.columns.text=NAME",
        ),
    ),
    bad(
        "check rows.jsonl --set data.validation_fraction=0.5 --set data.test_fraction=0.5",
        *("`data.validation_fraction=0.5`", "`data.test_fraction=0.5`", "below 1", "Lower one"),
    ),
)
"""Settings that are unknown or have a wrong value."""

CONTRADICTIONS = (
    bad("check rows.jsonl --set adapter.rank=4", "`adapter.rank`", "`--adapter lora`", "Remove it"),
    bad(
        "tune rows.jsonl --model tiny --no-baselines --set task_settings.num_shots=3",
        *("`task_settings.num_shots` has no effect", "`--no-baselines`", "Remove it"),
    ),
    bad(
        "tune rows.jsonl --model tiny --adapter lora --set adapter.rank=17",
        *("`adapter.rank` is 17", "only 16 wide", "a smaller rank, or `--adapter full`"),
    ),
    bad(
        "tune rows.jsonl --model tiny --adapter head --answer generate",
        *("`--adapter head`", "nothing to train", "Choose `--answer head`, or `--adapter lora`"),
    ),
    bad(
        "check rows.jsonl --model encoder --set answer=generate",
        *("`--answer generate`", "is an encoder", "Use `--answer head`, or another model"),
    ),
    bad(
        "check rows.jsonl --model tiny --set model.max_length=999",
        *("`model.max_length` is 999", "context is 128", "at most that"),
    ),
    bad("tune rows.jsonl --resume", "`--resume` needs `--out RUN`"),
    bad("tune words.jsonl --resume --overwrite --out run", "does not go with `--overwrite`"),
    bad(
        "compare run same --set data.over_length=window", "has no effect without `--data`", "`data`"
    ),
    bad("predict run words.jsonl --set seed=3", "`seed` has no effect here", "`data.over_length`"),
    bad("evaluate run words.jsonl --set data=3", "`data` has no effect here", "`data.columns`"),
    bad(
        "predict run words.jsonl --set data.over_length=cut", "'truncate' or 'window'", "Got 'cut'"
    ),
    bad(
        "models get mine --source tiny --retie", "`--retie` only works on a GGUF file", "FILE.gguf"
    ),
    bad("models get mine --source nowhere", "`--source nowhere`", "`package`, `hub`, or a path"),
)
"""Words that are right alone, but not together."""

FILES = (
    bad("tune nowhere.csv --model tiny", "`nowhere.csv` does not exist", "Give a file (.csv"),
    bad("check pipe.jsonl", "`pipe.jsonl` is a device or a pipe", "Give a file (.csv"),
    bad("check notes.txt", "`notes.txt`: unknown kind of file", ".jsonl"),
    bad("tune rows.jsonl --recipe nowhere.yaml", "`nowhere.yaml` does not exist"),
    bad("tune rows.jsonl --recipe run", "`run` is a folder", "Name a YAML file"),
    bad(
        "tune rows.jsonl --recipe brackets.yaml",
        "`brackets.yaml`",
        "line 2, column 1",
        "',' or '}'",
    ),
    bad("tune rows.jsonl --recipe list.yaml", "`list.yaml`", "`name: value` lines", "got list"),
    bad(
        "check rows.jsonl --recipe unknown.yaml", "unknown.yaml: ", "`trainig`", "mean `training`?"
    ),
    bad("tune rows.jsonl --recipe type.yaml", "type.yaml: ", "`training.epochs`", "Got 'three'"),
    bad("tune rows.jsonl --recipe part.yaml", "part.yaml: ", "`training`", "settings of its own"),
    bad(
        "tune rows.jsonl --recipe twice.yaml", "twice.yaml", "line 3", "`epochs` stands there twice"
    ),
    bad("tune rows.jsonl --model nosuch", "Unknown model `nosuch`", "Known: SmolLM2-135M-Instruct"),
    bad(
        "tune rows.jsonl",
        "SmolLM2-135M-Instruct` is not on this machine",
        "`lushan models get Smol",
    ),
    bad(
        "check rows.jsonl --model mine",
        "`mine` is no model folder",
        "`config.json`",
        "models list`",
    ),
    bad("tune rows.jsonl --model run", "`run` is no model folder", "is a run", "in `run/model`"),
    bad("tune rows.jsonl --model notes.txt", "`notes.txt` is a file", "Expected a folder", "list`"),
    bad(
        "tune rows.jsonl --model ~nobody-here/model", "Unknown model `~nobody-here/model`", "Known"
    ),
    bad(f"tune rows.jsonl --model {'long' * 100}", "File name too long", "longlong"),
    bad("models get nosuch", "Unknown model `nosuch`", "Known: SmolLM2", "`--source PATH`"),
    bad(
        "models get ../up --source tiny", "`../up` cannot be a model's name", "use letters, digits"
    ),
    bad("models get mine --source notes.txt", "notes.txt` is a file", "Expected a folder"),
    bad("models show mine", "`mine` is no model folder", "expected a Hugging Face model"),
    bad("models get --source tiny", "`--source tiny` needs a name", "`lushan models get NAME"),
    bad("models remove tiny", "no model `tiny`", "nothing was removed", "It holds: nothing"),
    bad("models remove ..", "no model `..`", "nothing was removed"),
)
"""Data, recipes and models that cannot be read."""

PLACES = (
    bad(
        "tune rows.jsonl --model tiny --out run",
        "`--out run` holds a run",
        "--resume",
        "--overwrite",
    ),
    bad("demo --seed 9223372036854775808 --out new", "`seed`", "less than", "Got 92233720368547"),
    bad("demo --out run", "`--out run` holds a run already", "`--resume`", "another folder"),
    bad("demo --resume", "`--resume` needs `--out RUN`", "not go with `--overwrite`"),
    bad("demo --out new --resume", "`new` holds no run to resume", "`recipe.yaml` is missing"),
    bad(
        "tune rows.jsonl --out mine --overwrite", "`--out mine` holds files that are no run", "Name"
    ),
    bad("tune rows.jsonl --out notes.txt", "`notes.txt` is a file", "Name a folder"),
    bad("tune rows.jsonl --out notes.txt/run", "`--out notes.txt/run`", "`notes.txt` is a file"),
    bad("demo --out notes.txt/run", "`--out notes.txt/run`", "`notes.txt` is a file"),
    bad(
        "tune run/rows.jsonl --model tiny --out run --overwrite",
        *("`--out run --overwrite` would delete `run/rows.jsonl`", "Name another folder"),
    ),
    bad(
        "tune rows.jsonl --model tiny --out run --overwrite --set data.added=run/rows.jsonl",
        *("`--out run --overwrite` would delete `run/rows.jsonl`", "Name another folder"),
    ),
    bad(
        "tune rows.jsonl --model run/model --out run --overwrite",
        *("`--out run --overwrite` would delete `run/model`", "Name another folder"),
    ),
    bad("augment rows.jsonl --model tiny --out new.csv", "`--out new.csv` must end in `.jsonl`"),
    bad(
        "predict run words.jsonl --out notes.txt",
        "`--out notes.txt` is there already",
        "overwrite`",
    ),
    bad(
        "predict run words.jsonl --out mine --overwrite", "`--out mine` is a folder", "Name a file"
    ),
    bad(
        "predict run words.jsonl --out pipe.jsonl --overwrite",
        "`--out pipe.jsonl` is a device or a pipe",
        "Name",
    ),
    bad(
        "predict run words.jsonl --out notes.txt/new.jsonl",
        "`notes.txt` is a file",
        "Name a folder",
    ),
    bad(
        "predict run words.jsonl --out mine/../words.jsonl --overwrite",
        *("`--out mine/../words.jsonl` is the input itself", "Name another file"),
    ),
    bad(
        "predict run words.jsonl --out run/recipe.yaml --overwrite",
        *("`--out run/recipe.yaml` is a file of the run", "Name one outside"),
    ),
)
"""Places where nothing may be written."""

RUNS = (
    bad("tune words.jsonl --resume --out mine", "`mine` holds no run", "`recipe.yaml` is missing"),
    bad("tune words.jsonl --resume --out nowhere", "`nowhere` holds no run to resume"),
    bad("tune words.jsonl --resume --out torn", "torn/recipe.yaml", "not valid YAML: line 2"),
    bad(
        "tune words.jsonl --resume --out run --epochs 7",
        *("`training.epochs`", "the run has 1, not 7", "Leave them out", "`--overwrite`"),
    ),
    bad("tune words.jsonl --resume --out unfinished --seed 5", "`seed`", "the run has 0, not 5"),
    bad(
        "tune other.jsonl --resume --out unfinished", "`other.jsonl` is not the data", "Restore it"
    ),
    bad("predict mine words.jsonl", "`mine` holds no tuned model", "`lushan tune --out` wrote"),
    bad(
        "predict nowhere words.jsonl", "`nowhere` holds no tuned model", "`lushan tune --out` wrote"
    ),
    bad(
        "predict unfinished words.jsonl",
        "`unfinished` holds no tuned model",
        "goes on with `--resume`",
    ),
    bad("predict torn words.jsonl", "torn/recipe.yaml", "not valid YAML: line 2"),
    bad("evaluate tiny words.jsonl", "`tiny` holds no tuned model", "`lushan tune --out` wrote"),
    bad("evaluate unfinished words.jsonl", "`unfinished` holds no tuned model", "`--resume`"),
    bad(
        "predict run rows.jsonl",
        "rows.jsonl",
        "`words`",
        "Found: `text`",
        "--set data.columns.text=",
    ),
    bad(
        "evaluate run strange.jsonl",
        "strange.jsonl, row 1",
        "`sand`",
        "knows: hill, sea",
        "Correct it",
    ),
    bad(
        "predict run trainonly", "`trainonly` has no test file", "only train.jsonl", "Name the file"
    ),
    bad("compare run", "at least two runs, got 1"),
    bad("compare run run", "named twice", "Name different runs"),
    bad("compare run nowhere", "`nowhere` does not exist", "`lushan tune --out` wrote"),
    bad("compare run mine", "`mine` holds no finished run", "`--data DATA`"),
    bad(
        "compare run unfinished", "`unfinished` holds no finished run", "`lushan tune ... --resume`"
    ),
    bad("compare run torn", "torn/predictions/after.jsonl` is missing or broken", "`--data DATA`"),
    bad(
        "compare run fewer",
        "`run` and `fewer`",
        "10 and 9 rows, 9 in common",
        "lushan compare RUN RUN --data",
    ),
    bad("compare run same --data nowhere.csv", "`nowhere.csv` does not exist", "Give a file (.csv"),
)
"""Runs that are none, unfinished, broken, or do not fit what is asked."""

BAD_COMMANDS = (*OPTIONS, *SETTINGS, *CONTRADICTIONS, *FILES, *PLACES, *RUNS, *OTHERS)
FAMILIES = ("feedback", "keys", "models")
"""Commands that are several."""
every_bad_command = pytest.mark.parametrize(
    "wrong", BAD_COMMANDS, ids=lambda wrong: wrong.line[:70]
)


@pytest.fixture(scope="module")
def shared_place(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_folder: MakeTiny
) -> Path:
    """Give a folder with data, models, recipes and runs; no wrong command line may change it."""
    place = tmp_path_factory.mktemp("place")
    for name, model_type in (("tiny", "llama"), ("encoder", "bert")):
        shutil.copytree(tiny_folder(model_type), place / name)
    (place / "mine").mkdir()
    for name, text in {**RECIPES, "notes.txt": "mine", "mine/thesis.txt": "years of work"}.items():
        (place / name).write_text(text, encoding="utf-8")
    _write_data(place, tiny_run)
    _write_runs(place, tiny_run)
    return place


def _write_data(place: Path, tiny_run: Path) -> None:
    write_lines(place / "rows.jsonl", good_rows())
    shutil.copy(tiny_run.parent / "reviews.jsonl", place / "words.jsonl")
    rows = [{"words": row["text"], "label": row["label"]} for row in good_rows()]
    write_lines(place / "other.jsonl", rows[:-1])
    write_lines(place / "strange.jsonl", [{"words": "A dune at noon.", "label": "sand"}])
    (place / "broken").mkdir()
    (place / "broken" / "lushan.sqlite3").write_text("no database " * 100, encoding="utf-8")
    (place / "trainonly").mkdir()
    write_lines(place / "trainonly" / "train.jsonl", rows)
    os.mkfifo(place / "pipe.jsonl")


def _write_runs(place: Path, tiny_run: Path) -> None:
    for name in ("run", "same", "fewer", "torn"):
        shutil.copytree(tiny_run, place / name)
    shutil.copy(place / "rows.jsonl", place / "run" / "rows.jsonl")
    answers = Path("predictions", "after.jsonl")
    lines = (tiny_run / answers).read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "fewer" / answers).write_text("".join(lines[:-1]), encoding="utf-8")
    (place / "torn" / answers).write_text(lines[0][:20], encoding="utf-8")
    (place / "torn" / "recipe.yaml").write_text("data: {columns: {\n", encoding="utf-8")
    (place / "unfinished").mkdir()
    for name in ("recipe.yaml", "run.json", ".lock"):
        shutil.copy(tiny_run / name, place / "unfinished" / name)


@pytest.fixture
def place(shared_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder as the one that the command runs in; the network is not for wrong command lines."""

    def fetch() -> None:
        raise AssertionError("the default model would have been fetched")

    monkeypatch.setattr("lushan.cli.demo._get_default_model", fetch)
    monkeypatch.chdir(shared_place)
    return shared_place


def content(folder: Path) -> dict[str, str | None]:
    """Give everything below a folder: a digest of each file, None for a folder."""
    return {
        str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest()
        if each.is_file()
        else None
        for each in folder.rglob("*")
    }


def words_of(wrong: BadCommand, *, as_json: bool) -> list[str]:
    """Give the words after `lushan`; `--json` comes before those that may lack something at their end."""
    words = shlex.split(wrong.line)
    num_names = 2 if words[0] in FAMILIES else 1
    return [*words[:num_names], *(["--json"] if as_json else []), *words[num_names:]]


@every_bad_command
def test_wrong_command_line_exits_2_with_one_message_and_changes_nothing(
    wrong: BadCommand, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(place)
    assert run(words_of(wrong, as_json=False)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    message = output.err.splitlines()[-1]
    assert output.err.count("Error: ") == 1
    assert [part for part in wrong.says if part not in message] == []
    assert message.startswith("Error: ")
    assert message.endswith((".", "?"))
    assert "Traceback" not in output.err
    assert content(place) == before
    assert list(models_folder().rglob("*")) == []


@every_bad_command
def test_wrong_command_line_with_json_tells_the_same_as_one_object(
    wrong: BadCommand, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(place)
    assert run(words_of(wrong, as_json=True)) == 2
    output = capsys.readouterr()
    (line,) = output.out.splitlines()
    told = json.loads(line)
    assert list(told) == ["error"]
    assert f"Error: {told['error']}" == output.err.splitlines()[-1]
    assert [part for part in wrong.says if part not in told["error"]] == []
    assert content(place) == before


@pytest.mark.parametrize(
    "wrong",
    [
        bad("tyr", "Unknown command `tyr`"),
        bad("tune rows.jsonl --set training.epoch=3", "Did you mean `training.epochs`?"),
        bad("models remove tiny", "nothing was removed"),
    ],
    ids=lambda wrong: wrong.line,
)
def test_wrong_command_line_of_a_real_process_exits_2_without_a_traceback(
    wrong: BadCommand, place: Path
) -> None:
    before = content(place)
    words = words_of(wrong, as_json=True)
    ran = subprocess.run([sys.executable, "-m", "lushan", *words], capture_output=True, text=True)
    assert ran.returncode == 2
    told = json.loads(ran.stdout)["error"]
    assert ran.stderr == f"Error: {told}\n"
    assert wrong.says[0] in told
    assert content(place) == before


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("family", FAMILIES)
def test_family_of_commands_without_one_is_refused(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([family]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: Missing command. `lushan {family} --help` shows what there is.\n"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "line",
    ["check rows.jsonl --model tiny", "predict run words.jsonl", "compare run same", "models list"],
)
def test_command_lines_that_the_wrong_ones_are_made_from_are_right(line: str) -> None:
    assert run(line.split()) == 0


@pytest.mark.parametrize("line", ["models list", "models get mine --source tiny", "doctor"])
def test_cache_that_is_a_file_is_refused(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUSHAN_CACHE", str(place / "notes.txt"))
    assert run([*line.split(), "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["error"]
    assert re.search(r"`LUSHAN_CACHE` says `.*notes\.txt`, which is a file\. Name a", message)


def test_every_command_has_wrong_command_lines() -> None:
    assert {wrong.line.split()[0] for wrong in BAD_COMMANDS} >= set(command_names())
