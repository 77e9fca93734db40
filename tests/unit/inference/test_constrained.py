"""Answers from a closed list: compared with plain transformers, one document and one token at a time."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, trainers
from transformers import AutoModelForCausalLM

from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.inference import constrained
from lushan.inference.constrained import (
    Fork,
    build_tree,
    candidate_tokens,
    num_shared_tokens,
    score_candidates,
)
from lushan.records import Features
from tests.conftest import MakeTiny
from tests.unit.inference.conftest import MakeSharp

LABELS = (" good", " good film", " bad", " bread and soup", " bread with nothing at all")
TEXTS = ("the fox", "a great film, never again", "soup", "the children ran home along the river")


def prompts(tokenizer: Tokenizer, texts: Sequence[str] = TEXTS) -> list[Features]:
    """Prompts that share their first 27 tokens or so."""
    encoded = tokenizer.encode([f"Say good or bad.\n\nText: {text}\nLabel:" for text in texts])
    return [Features(tuple(each.ids), str(n), n) for n, each in enumerate(encoded)]


def score(backbone: Backbone, features: Sequence[Features], labels: Sequence[str]) -> np.ndarray:
    with torch.inference_mode():
        return score_candidates(backbone, features, labels, advance=lambda _: None)


def brute_force(
    folder: Path, features: Sequence[Features], candidates: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Walk along every candidate, token by token, and share out what each fork allows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def log_probability(prompt: tuple[int, ...], candidate: tuple[int, ...]) -> float:
        total = 0.0
        for place, token in enumerate(candidate):
            start = candidate[:place]
            allowed = sorted({each[place] for each in candidates if each[:place] == start})
            with torch.inference_mode():
                logits_V = model(torch.tensor([[*prompt, *start]])).logits[0, -1].double()
            total += float(logits_V[allowed].log_softmax(-1)[allowed.index(token)])
        return total

    return np.array([
        [log_probability(each.token_ids, candidate) for candidate in candidates]
        for each in features
    ])


@pytest.fixture
def backbone(sharp_folder: MakeSharp) -> Backbone:
    return load_backbone(sharp_folder("llama"), purpose="language")


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neo", "gemma3_text"])
def test_scores_equal_a_walk_along_every_candidate_in_plain_transformers(
    model_type: str, sharp_folder: MakeSharp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constrained, "_NEGLIGIBLE", 0.0)  # so that every fork is walked
    backbone = load_backbone(sharp_folder(model_type), purpose="language")
    features = prompts(backbone.tokenizer)
    tokens = candidate_tokens(LABELS, backbone.tokenizer)
    expected = brute_force(sharp_folder(model_type), features, tokens)
    assert np.ptp(np.exp(expected), axis=0).max() > 0.1  # the texts make a difference
    np.testing.assert_allclose(score(backbone, features, LABELS), expected, atol=2e-4)


def test_probabilities_of_160_labels_sum_to_1(backbone: Backbone) -> None:
    labels = [f" {word} {number}" for word in ("good", "bad") for number in range(80)]
    logs = score(backbone, prompts(backbone.tokenizer), labels)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, rtol=1e-9)


def test_long_label_is_as_likely_as_a_short_one_with_the_same_fork(backbone: Backbone) -> None:
    features = prompts(backbone.tokenizer)
    short = score(backbone, features, [" good", " bad"])
    long = score(backbone, features, [" good", " bad and so on and so on, as long as it gets"])
    np.testing.assert_array_equal(long, short)


def test_label_that_begins_another_shares_its_probability_with_it(backbone: Backbone) -> None:
    features = prompts(backbone.tokenizer)
    apart = np.exp(score(backbone, features, [" good", " bad"]))
    nested = np.exp(score(backbone, features, [" good", " good film", " bad"]))
    np.testing.assert_allclose(nested[:, :2].sum(axis=1), apart[:, 0], rtol=1e-9)
    assert nested.min(axis=0)[:2].max() > 0


def test_prompt_is_scored_the_same_with_others_as_alone_without_a_shared_prefix(
    backbone: Backbone,
) -> None:
    features = prompts(backbone.tokenizer)
    assert num_shared_tokens([each.token_ids for each in features]) >= 8
    alone = np.concatenate([score(backbone, [each], LABELS) for each in features])
    np.testing.assert_allclose(score(backbone, features, LABELS), alone, atol=1e-5)


def make_unlikely(backbone: Backbone, token: int, prompt: Features) -> None:
    """Turn a token's row of the vocabulary away from where the prompt ends."""
    with torch.no_grad():
        last_D = backbone.hidden_states(pack([prompt]))[-1]
        backbone.plain_model.lm_head.weight[token] = -2 * last_D


def test_what_stands_behind_a_negligible_branch_is_shared_out_evenly_and_not_asked(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["!good", "!bad", "!bread", "?soup"]
    (prompt,) = prompts(backbone.tokenizer, ["the fox"])
    tokens = candidate_tokens(labels, backbone.tokenizer)
    make_unlikely(backbone, tokens[0][0], prompt)
    num_runs: list[int] = []
    pack_once = constrained.pack
    monkeypatch.setattr(
        constrained, "pack", lambda *args, **named: num_runs.append(1) or pack_once(*args, **named)
    )
    probabilities = np.exp(score(backbone, [prompt], labels))[0]
    assert probabilities[0] < 0.01 / 3
    assert probabilities[:3] == pytest.approx(probabilities[0], rel=1e-12)
    assert probabilities.sum() == pytest.approx(1.0, rel=1e-12)
    assert len(num_runs) == 1


def test_a_prompt_is_read_once_for_a_level_of_forks(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constrained, "_NEGLIGIBLE", 0.0)  # so that every fork is walked
    labels = [f"{first}{second}" for first in "!?.," for second in "abc"]
    (prompt,) = prompts(backbone.tokenizer, ["the fox"])
    num_tokens: list[int] = []
    pack_once = constrained.pack

    def counted(documents: Sequence[Features], **named: Any) -> object:  # noqa: ANN401
        num_tokens.append(sum(len(each.token_ids) for each in documents))
        return pack_once(documents, **named)

    monkeypatch.setattr(constrained, "pack", counted)
    score(backbone, [prompt], labels)
    assert num_tokens == [len(prompt.token_ids), len(prompt.token_ids) + 4]


def test_progress_counts_every_prompt_once(backbone: Backbone) -> None:
    told: list[int] = []
    with torch.inference_mode():
        score_candidates(backbone, prompts(backbone.tokenizer), LABELS, advance=told.append)
    assert sum(told) == len(TEXTS)


def test_tokens_of_candidates_are_those_that_follow_a_prompt_and_the_stop_token(
    tokenizer: Tokenizer,
) -> None:
    (tokens, _) = candidate_tokens([" good film", " bad"], tokenizer)
    assert tokenizer.decode(tokens[:-1]) == " good film"
    assert tokens[-1] == tokenizer.stop_id == 2


def test_tree_keeps_only_the_places_where_candidates_part() -> None:
    tree = build_tree([(5, 6, 7, 2), (5, 6, 8, 9, 9, 2), (5, 6, 8, 9, 2)])
    assert tree.path == (5, 6)
    assert tree.branches == {7: [0], 8: [1, 2]}
    below = tree.children[8]
    assert isinstance(below, Fork)
    assert (below.path, below.children) == ((5, 6, 8, 9), {9: 1, 2: 2})


def test_single_candidate_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing to choose from"):
        build_tree([(5, 2)])


def test_model_without_a_stop_token_cannot_choose_an_answer(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "stop_id", None)
    with pytest.raises(ModelError, match="no stop token"):
        candidate_tokens([" good", " bad"], tokenizer)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    raw = tokenizers.Tokenizer.from_file(str(tiny_folder("llama") / "tokenizer.json"))
    raw.normalizer = normalizers.NFC()
    composing = with_tokenizer(raw, tiny_folder("llama"), tmp_path)
    with pytest.raises(ModelError, match="Two labels have the same tokens"):
        candidate_tokens([" caf\u00e9", " cafe\u0301"], composing)


def test_tokenizer_that_joins_prompt_and_answer_is_refused_with_what_to_do(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    raw = tokenizers.Tokenizer(models.BPE())  # without a pre-tokenizer, merges cross words
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False
    )
    raw.train_from_iterator(["Text: a\nLabel: good", "Text: a\nLabel: bad"], trainer)
    joining = with_tokenizer(raw, tiny_folder("llama"), tmp_path)
    with pytest.raises(ModelError, match=r"joins the prompt's end .*`--answer head`"):
        candidate_tokens([" good", " bad"], joining)


def with_tokenizer(raw: tokenizers.Tokenizer, model: Path, tmp_path: Path) -> Tokenizer:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    raw.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 2), (1, 2, 3)], 1),
        ([(1, 9, 3), (1, 2, 3), (1, 5, 3)], 1),
        ([(5,), (5, 6)], 0),
        ([(1, 2), (3, 2)], 0),
    ],
)
def test_shared_tokens_leave_at_least_one_to_each_document(
    documents: list[tuple[int, ...]], expected: int
) -> None:
    assert num_shared_tokens(documents) == expected
