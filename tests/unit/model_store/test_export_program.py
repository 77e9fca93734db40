"""The process that asks an export: what it is told, what it tells, and how it may end."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import CertificateError
from lushan.model_store.export_program import (
    Answers,
    Questions,
    answer,
    ask_program,
    branch_log_likelihoods,
    check_labels,
    check_tokens,
    first_tokens,
    padded,
    write,
)
from lushan.model_store.exports import Likeliest
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.exported import features_of, merged_of, own_outputs, write_form


def test_fresh_process_answers_as_this_one(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    merged = merged_of(tiny_folder("llama"), "tagging", "head")
    write_form(merged, "hf", tmp_path / "hf")
    features = features_of(merged)
    num_labels = len(merged.predictor.task.layer(merged.predictor.state, answer="head").labels)
    questions = Questions("hf", str(tmp_path / "hf"), "tagging", num_labels, documents=features)
    here, there = answer(questions), ask_program(questions)
    assert there.program == here.program
    assert there.program.startswith("transformers 5.")
    assert there.labels == here.labels
    for ours, theirs, own in zip(
        here.outputs, there.outputs, own_outputs(merged, features), strict=True
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
        np.testing.assert_allclose(theirs, own, atol=1e-4)


def test_process_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    questions = Questions("hf", str(tmp_path), "tagging", 3, documents=[Features((1, 2), "", 0)])
    with pytest.raises(CertificateError, match=r"(?s)failed with exit code 1\..*Error"):
        ask_program(questions)


def test_process_that_is_killed_is_told_by_its_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "dies"
    script.write_text("#!/bin/sh\nkill -FPE $$\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(CertificateError, match="was killed by SIGFPE"):
        ask_program(Questions("hf", str(tmp_path), "tagging", 3))


def test_padding_stands_at_the_end_and_is_masked() -> None:
    ids_BL, mask_BL = padded([(5, 6, 7), (8,)])
    assert ids_BL.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]


def counting_score(log_of: Callable[[int, int], float]) -> Callable[..., np.ndarray]:
    """A vocabulary of 10 whose scores depend on the token that is read, and where."""

    def score(ids_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
        del mask_BL
        logits_BLV = np.zeros((*ids_BL.shape, 10), dtype=np.float32)
        for place, token in np.ndenumerate(ids_BL):
            logits_BLV[place] = [log_of(int(token), following) for following in range(10)]
        return logits_BLV

    return score


def test_each_branch_is_read_behind_the_start_alone() -> None:
    # The start 1 2, then the branches 3 4 and 5 6: each begins behind the 2, whatever stands in the other.
    document = Features(
        token_ids=(1, 2, 3, 4, 5, 6),
        place="",
        example_index=0,
        positions=(1, 2, 1, 4),
        units=((0, 3), (0, 4), (1, 5), (1, 6)),
        branches=((2, 2), (4, 2)),
    )
    weights = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    logs = weights.log_softmax(dim=-1)
    found = branch_log_likelihoods(
        counting_score(lambda token, following: float(weights[token, following])), document
    )
    expected = [float(logs[2, 3] + logs[3, 4]), float(logs[2, 5] + logs[5, 6])]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_program_writes_what_it_takes_for_likeliest_behind_its_own_words() -> None:
    calls: list[int] = []

    def likeliest_after(text: Sequence[int]) -> int:
        return (sum(text) * 7 + len(text)) % 11

    def follow(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Likeliest]:
        calls.append(len(answer_ids))
        starts = [[*prompt_ids, *answer_ids[:place]] for place in range(len(answer_ids))]
        return [[(likeliest_after(each), -0.5), (20, -1.0)] for each in starts]

    expected = [3, 4]
    for _ in range(6):
        expected.append(likeliest_after(expected))
    found = write(follow, [3, 4], [0] * 6)
    assert first_tokens(found) == expected[2:]
    calls.clear()
    assert write(follow, [3, 4], expected[2:]) == found
    assert calls == [6]
    assert write(follow, [3, 4], []) == []


def test_tokens_and_labels_of_others_are_refused_by_name(tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    raw = tokenizers.Tokenizer.from_file(str(tiny_folder("llama") / "tokenizer.json"))
    ids = raw.encode("the fox", add_special_tokens=False).ids
    found = Answers("program 1", ["b", "a"], [], [], [ids])
    check_tokens(tokenizer, ["the fox"], found)
    with pytest.raises(CertificateError, match="program 1 cuts the text 'the foxes' into other"):
        check_tokens(tokenizer, ["the foxes"], found)
    check_labels(["b", "a"], found)
    check_labels([], found)
    with pytest.raises(CertificateError, match=r"labels \['b', 'a'\], the run \['a', 'b'\]"):
        check_labels(["a", "b"], found)
