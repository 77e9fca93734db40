"""Answers from hidden states are those of transformers' own classes, whoever shares the batch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
)

from lushan.backbones.adapters import attach
from lushan.backbones.heads import (
    check_layer,
    class_logits,
    mean_over_tokens,
    read_position,
    token_log_likelihoods,
    token_logits,
    vocabulary_logits,
)
from lushan.backbones.inspect import describe
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.packed import pack_weights
from lushan.data.batching import pack
from lushan.errors import ModelError
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import ENCODER_TYPES, OTHER_ENCODER_TYPES, TINY_TYPES, TINY_VOCABULARY, write_tiny

LABELS = ("bad", "fine", "good")
TEXTS = (
    "A brave little fox",
    "The service was slow and the food was cold. Never again...",
    "What a great film!",
)
OTHER_HEADS = ("albert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)

Saved = tuple[Path, Any]


@pytest.fixture(params=[*TINY_TYPES, *OTHER_HEADS, "modernbert mean"])
def saved(request: pytest.FixtureRequest, tiny_folder: MakeTiny, tmp_path: Path) -> Saved:
    """Give a folder with a class layer, and transformers' own model of it."""
    model_type, _, pooling = request.param.partition(" ")
    options = {"classifier_pooling": pooling} if pooling else {}
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder(model_type), num_labels=len(LABELS), attn_implementation="eager", **options
    )
    model.save_pretrained(tmp_path / "saved")
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    backbone.tokenizer.save(tmp_path / "saved")
    return tmp_path / "saved", model.eval()


def load(folder: Path) -> Backbone:
    backbone = load_backbone(folder, purpose="classify", labels=LABELS)
    assert backbone.fresh_weights == ()
    return backbone


def encode(backbone: Backbone, texts: Sequence[str] = TEXTS) -> list[Features]:
    return [
        Features(tuple(each.ids), str(number), number)
        for number, each in enumerate(backbone.tokenizer.encode(texts))
    ]


@torch.inference_mode()
def logits_in_order(backbone: Backbone, features: Sequence[Features]) -> Tensor:
    batch = pack(features)
    logits_NC = class_logits(backbone.plain_model, backbone.hidden_states(batch), batch)
    places = [each.example_index for each in batch.features]
    return logits_NC[torch.tensor(places).argsort()]


@torch.inference_mode()
def test_class_scores_are_those_of_transformers_on_one_text(saved: Saved) -> None:
    folder, model = saved
    backbone = load(folder)
    features = encode(backbone)
    expected = [model(input_ids=torch.tensor([each.token_ids])).logits for each in features]
    assert_close(logits_in_order(backbone, features), torch.cat(expected))


@torch.inference_mode()
def test_class_scores_are_those_of_a_batch_that_transformers_pads_on_the_right(
    saved: Saved,
) -> None:
    folder, model = saved
    backbone = load(folder)
    features = encode(backbone)
    longest = max(len(each.token_ids) for each in features)
    rows = [[*each.token_ids, *[0] * (longest - len(each.token_ids))] for each in features]
    mask = [[int(place < len(each.token_ids)) for place in range(longest)] for each in features]
    expected = model(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
    assert_close(logits_in_order(backbone, features), expected)


def test_companions_in_the_batch_change_no_class_score(saved: Saved) -> None:
    backbone = load(saved[0])
    text, *others = encode(backbone, (TEXTS[0], "a", *TEXTS, TEXTS[1] * 2))
    alone = logits_in_order(backbone, [text])
    for companions in ([others[0]], others[1:3], others[-1:], others):
        together = logits_in_order(backbone, [text, *companions])[:1]
        assert_close(together, alone)


@torch.inference_mode()
def test_text_that_ends_in_the_padding_token_is_read_at_its_end(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="classify", labels=LABELS)
    ids = (7, 8, 9, 0, 0)
    model = backbone.plain_model
    config = backbone.core.config
    logits_NC = logits_in_order(backbone, [Features(ids, "a", 0), Features((5, 6), "b", 1)])
    config._attn_implementation = "eager"
    expected = model.score(backbone.core(input_ids=torch.tensor([ids])).last_hidden_state[:, -1])
    assert_close(logits_NC[:1], expected)


@pytest.mark.parametrize("model_type", ["llama", "bert", "modernbert", *OTHER_HEADS])
def test_class_scores_of_a_bf16_model_are_float32(model_type: str, tiny_folder: MakeTiny) -> None:
    exact, rounded = (
        load_backbone(
            tiny_folder(model_type), purpose="classify", labels=LABELS, precision=precision
        )
        for precision in ("fp32", "bf16")
    )
    features = encode(exact)
    logits_NC = logits_in_order(rounded, features)
    assert logits_NC.dtype == torch.float32
    torch.testing.assert_close(logits_NC, logits_in_order(exact, features), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("model_type", ["bert", *OTHER_HEADS])
def test_new_adapters_and_packed_weights_leave_class_scores_as_they_are(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    exact, adapted = (
        load_backbone(tiny_folder(model_type), purpose="classify", labels=LABELS) for _ in range(2)
    )
    packed = load_backbone(
        tiny_folder(model_type), purpose="classify", labels=LABELS, precision="bf16"
    )
    attach(adapted, method="lora", rank=2)
    adapted.model.eval()
    pack_weights(packed, "bf16")
    features = encode(exact)
    expected = logits_in_order(exact, features)
    assert_close(logits_in_order(adapted, features), expected)
    torch.testing.assert_close(logits_in_order(packed, features), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("model_type", ["bert", *OTHER_HEADS])
def test_encoder_that_reads_its_first_token_says_so(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="classify", labels=LABELS)
    assert read_position(backbone.plain_model) == "first"


def one_batch() -> Batch:
    return pack([Features((5, 6), "a", 0), Features((7, 8, 9), "b", 1)])


@pytest.mark.parametrize("model_type", ["llama", "modernbert"])
def test_dropout_before_the_class_layer_is_for_training_only(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    model = load_backbone(tiny_folder(model_type), purpose="classify", labels=LABELS).plain_model
    hidden_TD = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    plain = class_logits(model, hidden_TD, one_batch())
    assert torch.equal(class_logits(model, hidden_TD, one_batch(), dropout=0.5), plain)
    model.train()
    assert torch.equal(class_logits(model, hidden_TD, one_batch()), plain)
    draws = [class_logits(model, hidden_TD, one_batch(), dropout=0.5) for _ in range(2000)]
    assert not torch.equal(draws[0], plain)
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), plain, rtol=0.2, atol=0.1)


def test_class_layer_that_is_not_known_is_refused() -> None:
    config = DebertaV2Config(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = DebertaV2ForSequenceClassification(config)
    with pytest.raises(ModelError, match=r"`deberta-v2` is not supported\. Use a decoder, or an"):
        class_logits(model, torch.zeros(5, 16), one_batch())


@pytest.mark.parametrize("model_type", [*TINY_TYPES, *OTHER_HEADS, "mpnet"])
def test_layer_that_is_known_is_not_refused(model_type: str, tiny_folder: MakeTiny) -> None:
    folder = tiny_folder(model_type)
    for purpose in ("classify", "tag"):
        check_layer(folder, describe(folder), purpose)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("deberta-v2", "The class layer of `deberta-v2` is not supported"),
        ("granite", "transformers has no class layer for `granite`. Use `--answer generate`"),
    ],
)
def test_layer_that_is_not_known_is_refused_without_weights(
    model_type: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(model_type, tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ModelError, match=message):
        check_layer(tmp_path, describe(tmp_path), "classify")
    check_layer(tmp_path, describe(tmp_path), "language")


def test_mean_is_over_the_tokens_of_each_document() -> None:
    hidden_TD = torch.tensor([[1.0], [3.0], [10.0], [20.0], [60.0]])
    assert mean_over_tokens(hidden_TD, one_batch()).tolist() == [[2.0], [30.0]]


def test_mean_of_a_long_document_in_bf16_loses_nothing() -> None:
    batch = pack([Features((5,) * 3000, "a", 0)])
    ones_TD = torch.ones(3000, 2, dtype=torch.bfloat16)
    mean_ND = mean_over_tokens(ones_TD, batch)
    assert mean_ND.dtype == torch.bfloat16
    assert mean_ND.tolist() == [[1.0, 1.0]]


@torch.inference_mode()
def test_vocabulary_scores_are_those_of_transformers(language_model: PreTrainedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    hidden_KD = language_model.base_model(input_ids=ids).last_hidden_state[0, 1:3]
    expected = language_model(input_ids=ids).logits[0, 1:3]
    assert_close(vocabulary_logits(language_model, hidden_KD), expected)


@torch.inference_mode()
def test_chosen_tokens_have_the_scores_that_they_have_among_all(
    language_model: PreTrainedModel,
) -> None:
    ids, chosen = torch.tensor([[5, 6, 7, 8]]), torch.tensor([300, 2, 17])
    hidden_KD = language_model.base_model(input_ids=ids).last_hidden_state[0]
    expected = language_model(input_ids=ids).logits[0][:, chosen]
    logits = vocabulary_logits(language_model, hidden_KD, chosen)
    assert_close(logits, expected)


def test_vocabulary_scores_of_a_bf16_model_are_float32(tiny_folder: MakeTiny) -> None:
    model = load_backbone(tiny_folder("llama"), purpose="language", precision="bf16").plain_model
    logits_KV = vocabulary_logits(model, torch.ones(2, 16, dtype=torch.bfloat16))
    assert logits_KV.dtype == torch.float32
    assert logits_KV.shape == (2, TINY_VOCABULARY)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_token_scores_are_those_of_transformers(model_type: str, tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="tag", labels=LABELS)
    batch = one_batch()
    with torch.inference_mode():
        logits_TC = token_logits(backbone.plain_model, backbone.hidden_states(batch))
        backbone.core.config._attn_implementation = "eager"
        alone = [
            backbone.plain_model(input_ids=torch.tensor([each.token_ids])).logits[0]
            for each in batch.features
        ]
    assert_close(logits_TC, torch.cat(alone))
    assert read_position(backbone.plain_model) == "all"


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_dropout_before_the_token_layer_is_for_training_only_and_of_our_choice(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="tag", labels=LABELS)
    model = backbone.plain_model
    hidden_TD = torch.randn(6, 16)
    expected = token_logits(model, hidden_TD, dropout=0.9)
    model.train()
    assert torch.equal(token_logits(model, hidden_TD), expected)
    assert not torch.equal(token_logits(model, hidden_TD, dropout=0.9), expected)


@pytest.mark.parametrize("model_type", ENCODER_TYPES + OTHER_ENCODER_TYPES)
def test_token_layers_of_encoders_have_their_own_dropout_in_training(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    model = load_backbone(tiny_folder(model_type), purpose="tag", labels=LABELS).plain_model
    own = model.drop if model_type == "modernbert" else model.dropout
    own.p = 0.9
    hidden_TD = torch.randn(6, 16)
    expected = token_logits(model, hidden_TD)
    model.train()
    assert not torch.equal(token_logits(model, hidden_TD), expected)


@pytest.mark.parametrize("most_logits", [1 << 25, 3 * TINY_VOCABULARY])
def test_token_log_likelihoods_and_their_gradients_do_not_depend_on_the_parts(
    most_logits: int, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.backbones.heads._MOST_LOGITS", most_logits)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    hidden_KD = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets_K = torch.arange(8) + 20
    found_K = token_log_likelihoods(model, hidden_KD, targets_K)
    expected_K = model.lm_head(hidden_KD).log_softmax(-1)[torch.arange(8), targets_K]
    assert_close(found_K, expected_K)
    weights_K = torch.arange(8.0)
    (found,) = torch.autograd.grad((found_K * weights_K).sum(), hidden_KD)
    (expected,) = torch.autograd.grad((expected_K * weights_K).sum(), hidden_KD)
    assert_close(found, expected)
