"""The folder of a run: who may write, what is found again, what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lushan.errors import RunError
from lushan.model_store.run_folder import (
    RunFolder,
    check_can_be_told,
    check_is_free,
    check_keeps,
    is_being_written,
    read_correct,
    read_task,
    read_truth_tokens,
)
from lushan.records import Call, Prediction

RECIPE = {"task": "classification", "seed": 3}


def create(path: Path, *, overwrite: bool = False) -> RunFolder:
    return RunFolder.create(path, recipe=RECIPE, status={"data": "a.csv"}, overwrite=overwrite)


def reopen(path: Path, run: RunFolder) -> RunFolder:
    """Open a run as the next process would, after this one has ended."""
    run.close()
    return RunFolder.open(path)


def test_run_that_was_begun_is_found_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.note(num_threads=2)
    found = reopen(tmp_path / "run", run)
    assert found.recipe() == RECIPE
    assert (found.get("data"), found.get("num_threads")) == ("a.csv", 2)
    assert found.get("unknown") is None


def test_seconds_of_a_phase_add_up_over_resumes(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.add_seconds("train", 1.5)
    found = reopen(tmp_path / "run", run)
    found.add_seconds("train", 2.0)
    assert found.get("seconds") == {"train": 3.5}


def test_seconds_of_a_phase_that_fails_are_counted(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(RuntimeError), run.clock("train"):
        raise RuntimeError
    assert run.get("seconds")["train"] >= 0


@pytest.mark.parametrize("answer", ["good", ("a", "b"), "\u5e90\u5c71", "a\u2028b\x85c\nd"])
def test_predictions_are_read_back(answer: str | tuple[str, ...], tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    predictions = [Prediction(f"id{n}", answer, {"good": 0.75}, -0.25, "v1") for n in range(2)]
    predictions.append(Prediction("id2", answer, tool_calls=(Call("light", {"on": [True]}),)))
    predictions.append(Prediction("id3", answer, num_cut_tokens=4))
    run.save_predictions("before", predictions)
    assert run.predictions("before") == predictions
    assert run.predictions("after") is None


@pytest.mark.parametrize(("likelihoods", "num_kept"), [({}, 5), ({"0": -1.0}, 7)])
def test_all_probabilities_are_kept_where_a_row_has_choices_of_its_own(
    likelihoods: dict[str, float], num_kept: int, tmp_path: Path
) -> None:
    run = create(tmp_path / "run")
    shares = {str(n): (n + 1) / 28 for n in range(7)}
    run.save_predictions("after", [Prediction("one", "6", shares, log_likelihoods=likelihoods)])
    (found,) = run.predictions("after") or []
    assert list(found.probabilities.items()) == list(shares.items())[::-1][:num_kept]


def test_text_that_reads_like_nothing_stays_a_text_in_the_recipe(tmp_path: Path) -> None:
    words = ("None", "null", "~", "yes", "1e-3", "=", "", "N")
    recipe = {"names": dict(zip(words, words, strict=True)), "nothing": None}
    run = RunFolder.create(tmp_path / "run", recipe=recipe, status={}, overwrite=False)
    assert reopen(tmp_path / "run", run).recipe() == recipe


def test_what_was_right_is_kept_beside_the_answers(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    predictions = [Prediction(name, "good") for name in ("one", "two")]
    run.save_predictions("after", predictions, correct=[True, False])
    with pytest.raises(RunError, match=r"holds no finished run: `results\.json` is missing"):
        read_correct(run.path)
    (run.path / "results.json").touch()
    assert read_correct(run.path) == {"one": True, "two": False}
    assert run.predictions("after") == predictions


def test_how_good_graded_answers_are_is_kept_to_the_last_digit(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("after", [Prediction("one", "good")], correct=[0.1 + 0.2])
    (run.path / "results.json").touch()
    assert read_correct(run.path) == {"one": 0.1 + 0.2}


def test_task_and_tokens_of_the_truth_are_read_of_a_finished_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("after", [Prediction("one", "good", num_truth_tokens=7)], correct=[0.5])
    (run.path / "results.json").write_text('{"task": "dialogue"}', encoding="utf-8")
    assert read_task(run.path) == "dialogue"
    assert read_truth_tokens(run.path) == {"one": 7}


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_results_that_do_not_name_their_task_are_said_to_be_broken(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"results\.json` is missing or broken: .*`--data DATA`"):
        read_task(tmp_path)


@pytest.mark.parametrize("text", [None, '{"id": "one"', '{"id": "one"}', "[1]"])
def test_missing_or_broken_answers_are_said(text: str | None, tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    (tmp_path / "predictions").mkdir()
    if text is not None:
        (tmp_path / "predictions" / "after.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"after\.jsonl` is missing or broken: .*`--data DATA`"):
        read_correct(tmp_path)


def test_run_that_nobody_holds_any_more_can_be_opened(tmp_path: Path) -> None:
    create(tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").recipe() == RECIPE


def test_folder_with_a_run_is_refused_without_overwrite(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(RunError, match=r"run` holds a run already\. Use `--resume`"):
        check_is_free(tmp_path / "run", overwrite=False)


def test_overwriting_removes_what_the_older_run_left(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("before", [Prediction("id", "good")])
    run.close()
    assert create(tmp_path / "run", overwrite=True).predictions("before") is None


def test_run_behind_a_link_is_overwritten_where_it_is(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("before", [Prediction("id", "good")])
    run.close()
    (tmp_path / "latest").symlink_to("run")
    assert create(tmp_path / "latest", overwrite=True).predictions("before") is None
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_current_folder_is_overwritten_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("before", [Prediction("id", "good")])
    run.close()
    monkeypatch.chdir(tmp_path / "run")
    found = create(Path(), overwrite=True)
    assert found.predictions("before") is None
    assert found.recipe() == RECIPE


def test_a_run_whose_removal_was_cut_short_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "model").mkdir()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "run", overwrite=True)
    assert create(tmp_path / "run", overwrite=True).recipe() == RECIPE
    assert not (tmp_path / "run" / "model").exists()


def test_what_is_left_of_a_run_at_any_moment_of_its_removal_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path / "run")
    run.save_predictions("before", [Prediction("id", "good")])
    (tmp_path / "run" / "results.json").touch()
    run.close()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place, name in ((shutil, "rmtree"), (Path, "unlink"), (RunFolder, "_save_status")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(KeyboardInterrupt):
                create(tmp_path / "run", overwrite=True)
        check_is_free(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert create(tmp_path / "run").recipe() == RECIPE


def test_run_that_is_still_going_is_not_overwritten(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(RunError, match="Another process is writing to"):
        create(tmp_path / "run", overwrite=True)
    assert run.recipe() == RECIPE


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_other_files_is_never_used(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="holds files that are no run"):
        create(tmp_path, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_recipe_that_somebody_wrote_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3\n", encoding="utf-8")
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="holds files that are no run"):
        create(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").is_file()


def test_what_a_new_run_needs_is_not_overwritten(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "rows.csv"
    (tmp_path / "link").symlink_to(run)
    check_keeps(run, needed=(data, tmp_path / "other" / "model"))
    for needed in (run / "model", run, tmp_path / "link" / "rows.csv"):
        with pytest.raises(RunError, match=f"would delete `{needed}`"):
            check_keeps(run, needed=(data, needed))


def test_name_that_is_not_utf_8_is_refused_by_its_part_of_the_path(tmp_path: Path) -> None:
    check_can_be_told(tmp_path, tmp_path / "caf\u00e9" / "\u5e90\u5c71")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / os.fsdecode(b"caf\xe9"))
    told = r"link/rows\.csv`: the name `caf\\xe9` is not UTF-8, .* Rename it\."
    with pytest.raises(RunError, match=told) as found:
        check_can_be_told(tmp_path, tmp_path / "link" / "rows.csv")
    str(found.value).encode()  # can be shown


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"run` is a file\. Name a folder"):
        create(tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux' own folder")
def test_place_that_takes_no_folders_is_refused() -> None:
    with pytest.raises(RunError, match=r"`/proc/run` cannot be made: `/proc` takes no folders"):
        RunFolder.create(Path("/proc/run"), recipe={}, status={}, overwrite=False)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run to resume: `recipe\.yaml` is missing"):
        RunFolder.open(tmp_path)


def test_broken_status_is_said_with_what_to_do(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json` is broken: .*`--overwrite`"):
        RunFolder.open(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json` is broken: it holds a list, not an object"):
        RunFolder.open(tmp_path / "run")


def test_recipe_that_was_changed_is_not_resumed(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(f"# mine\n{file.read_text('utf-8')}\n", encoding="utf-8")
    RunFolder.open(tmp_path / "run").close()
    file.write_text("task: classification\nseed: 4\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"recipe\.yaml` is not the recipe .*`--overwrite`"):
        RunFolder.open(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")  # of an earlier version
    assert RunFolder.open(tmp_path / "run").recipe()["seed"] == 4


def test_two_processes_cannot_write_to_one_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from lushan.model_store.run_folder import RunFolder\n"
        "RunFolder.open(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "Another process is writing to" in refused.stderr
    run.close()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_run_is_being_written_as_long_as_somebody_holds_it(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert is_being_written(tmp_path / "run")
    run.close()
    assert not is_being_written(tmp_path / "run")
    assert not is_being_written(tmp_path)
