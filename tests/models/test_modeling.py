"""The model: who sees whom, what is loaded, and what is lost."""

import contextlib
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwenlong import save, tiny_config, tiny_model
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, Qwen2Config

from cprs_integrations.errors import ArgumentError, CPRSError, ModelError
from cprs_integrations.models import QwenLongCPRSConfig, QwenLongCPRSForTokenCritic, QwenLongCPRSModel
from cprs_integrations.models.losses import language_loss, reference_tag_loss, tag_loss
from cprs_integrations.models.modeling_qwenlong import attention_masks

START = 3  # of the tiny model


def flash_kernel(query, key, value, attention_mask, *, query_length, is_causal, softmax_scale, **options):
    """What the kernels of flash attention do, slowly: [B, L, heads, D], a mask [B, L] of padding or None, causal or not."""
    assert attention_mask is None or attention_mask.shape == key.shape[:2]
    assert options["sliding_window"] is None
    groups = query.shape[2] // key.shape[2]
    key, value = (tensor.repeat_interleave(groups, 2) for tensor in (key, value))
    seen = torch.ones(query_length, query_length, dtype=torch.bool)
    seen = (seen.tril() if is_causal else seen)[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :].bool()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * softmax_scale
    weights = scores.masked_fill(~seen, torch.finfo(query.dtype).min).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.fixture(autouse=True)
def flash_without_a_gpu(monkeypatch):
    """The kernel alone is replaced: what transformers hands to it is what it would get on a GPU."""
    monkeypatch.setattr("transformers.integrations.flash_attention._flash_attention_forward", flash_kernel)


ATTENTION = ["eager", "sdpa", "flash_attention_2"]


def with_attention(name, **changed):
    model = tiny_model(**changed)
    model.config._attn_implementation = model.model.config._attn_implementation = name
    return model


def ids_and_mask(padding):
    ids = torch.arange(12)[None] * 7 % 400 + 5
    mask = torch.ones_like(ids)
    if padding == "none":
        return ids, None, 0
    pads, ones = torch.zeros(1, 4, dtype=torch.long), mask
    if padding == "right":
        return torch.cat((ids, pads), 1), torch.cat((ones, pads), 1), 0
    return torch.cat((pads, ids), 1), torch.cat((pads, ones), 1), 4


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_future_token_moves_the_first_through_the_bidirectional_layers_alone(attention, padding):
    model = with_attention(attention)
    ids, mask, first = ids_and_mask(padding)
    other = ids.clone()
    other[0, first + 11] = 3
    with torch.inference_mode():
        before, after = (model(found, mask, output_hidden_states=True).hidden_states for found in (ids, other))
    moved = [(one - two)[0, first].abs().max().item() for one, two in zip(before, after, strict=True)]
    assert moved[: START + 1] == [0.0] * (START + 1)
    assert all(change > 1e-4 for change in moved[START + 1 :])


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_past_token_moves_the_last_through_every_layer(attention, padding):
    model = with_attention(attention)
    ids, mask, first = ids_and_mask(padding)
    other = ids.clone()
    other[0, first] = 3
    with torch.inference_mode():
        before, after = (model(found, mask, output_hidden_states=True).hidden_states for found in (ids, other))
    moved = [(one - two)[0, first + 11].abs().max().item() for one, two in zip(before, after, strict=True)]
    assert moved[0] == 0.0
    assert all(change > 1e-4 for change in moved[1:])


@pytest.mark.parametrize("attention", ATTENTION)
def test_padding_is_seen_by_nobody(attention):
    model = with_attention(attention)
    for padding in ("left", "right"):
        ids, mask, _ = ids_and_mask(padding)
        other = torch.where(mask.bool(), ids, 99)
        with torch.inference_mode():
            found = [model(tokens, mask).bi_logits[mask.bool()] for tokens in (ids, other)]
        assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_all_attention_implementations_agree(padding):
    ids, mask, _ = ids_and_mask(padding)
    valid = torch.ones_like(ids).bool() if mask is None else mask.bool()
    with torch.inference_mode():
        eager, *others = (with_attention(name)(ids, mask).bi_logits[valid] for name in ATTENTION)
    assert all(torch.allclose(eager, other, atol=1e-5) for other in others)


def test_positions_count_padding_on_the_left_too():
    model = tiny_model()
    ids, mask, first = ids_and_mask("left")
    with torch.inference_mode():
        padded = model(ids, mask).bi_logits[:, first:]
        shifted = model(ids[:, first:], position_ids=torch.arange(first, ids.shape[1])[None]).bi_logits
    assert torch.allclose(padded, shifted, atol=1e-5)


def test_no_mask_of_length_by_length_is_built_without_need():
    hidden = torch.zeros(2, 6, 4)
    ones = torch.ones(2, 6, dtype=torch.long)
    right = ones.clone()
    right[1, 4:] = 0
    assert attention_masks("sdpa", None, hidden) == (None, None)
    assert attention_masks("sdpa", ones, hidden) == (None, None)
    causal, bidirectional = attention_masks("sdpa", right, hidden)
    assert causal is None
    assert bidirectional.shape == (2, 1, 1, 6)
    assert attention_masks("sdpa", right.flip(1), hidden).causal.shape == (2, 1, 6, 6)
    assert attention_masks("flash_attention_2", ones, hidden) == (None, None)
    assert attention_masks("flash_attention_2", right, hidden).causal.shape == (2, 6)


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_row_of_padding_alone_spoils_nothing(attention):
    ids = torch.arange(16).reshape(2, 8) + 5
    mask = torch.tensor([[1] * 8, [0] * 8])
    with torch.inference_mode():
        found = with_attention(attention)(ids, mask).bi_logits
    assert found.isfinite().all()


def test_words_are_scored_by_their_rows_of_the_lm_head_alone():
    model = tiny_model()
    ids, _, _ = ids_and_mask("none")
    with torch.inference_mode():
        found = model(ids, label_ids=torch.tensor([40, 7, 300]))
        whole = model.lm_head(model.model(ids).last_hidden_state)
    assert found.label_logits.shape == (1, 12, 3)
    assert torch.allclose(found.label_logits, whole[..., [40, 7, 300]], atol=1e-5)
    assert model(ids).label_logits is None


class Shapes(TorchDispatchMode):
    """Notes the shape of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        several = found if isinstance(found, tuple | list) else [found]
        self.seen |= {tuple(one.shape) for one in several if torch.is_tensor(one)}
        return found


def test_nothing_as_wide_as_the_vocabulary_is_computed_for_the_words():
    model, (ids, _, _) = tiny_model(), ids_and_mask("none")
    vocabulary, hidden = model.lm_head.weight.shape
    with Shapes() as shapes, torch.inference_mode():
        model(ids, label_ids=torch.tensor([40, 7, 300]))
    wide = {shape for shape in shapes.seen if vocabulary in shape}
    assert wide <= {(vocabulary, hidden), (hidden, vocabulary)}  # the weights themselves
    assert (1, 12, 3) in shapes.seen


@pytest.mark.parametrize(("attention", "square"), [("sdpa", False), ("eager", True)])
def test_nothing_of_length_by_length_is_made_by_sdpa_without_padding_nor_with_it_on_the_right(attention, square):
    ids = torch.arange(29)[None] + 5
    right = torch.tensor([[1] * 25 + [0] * 4])
    for mask in (None, torch.ones_like(right), right):
        with Shapes() as shapes, torch.inference_mode():
            with_attention(attention)(ids, mask)
        assert any(shape[-2:] == (29, 29) for shape in shapes.seen) is square


def test_it_does_not_generate_and_loses_nothing_without_a_dict():
    model, (ids, _, _) = tiny_model(), ids_and_mask("none")
    assert not model.can_generate()
    assert torch.equal(model(ids, return_dict=False).bi_logits, model(ids).bi_logits)


def test_a_model_needs_no_autograd_nor_cache():
    with torch.inference_mode():
        found = tiny_model()(torch.ones(1, 5, dtype=torch.long))
    assert not found.bi_logits.requires_grad
    assert "past_key_values" not in found
    assert tiny_config().use_cache is False


class TestConfiguration:
    def test_more_bidirectional_layers_start_where_the_config_says(self):
        model = tiny_model(bidirectional_start_layer=1)
        assert [layer.self_attn.is_causal for layer in model.model.layers] == [True] + [False] * 4

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"bidirectional_start_layer": 21}, "bidirectional_start_layer=21: the model has 5 layers"),
            ({"bidirectional_start_layer": -1}, "bidirectional_start_layer=-1"),
            ({"bi_label_type": "IOB"}, "bi_label_type must be one of BIOE, BIO, not 'IOB'"),
            ({"bi_loss_type": "hinge"}, "bi_loss_type must be one of focal, ce, not 'hinge'"),
            ({"bi_loss_weight": [1.0]}, "bi_loss_weight must have one weight a tag of BIOE"),
            ({"use_sliding_window": True}, "use_sliding_window"),
        ],
    )
    def test_what_it_cannot_be_is_named(self, changed, message):
        with pytest.raises(ArgumentError, match=message):
            tiny_config(**changed)

    def test_the_scheme_bio_has_three_tags_and_is_loaded_with_them(self, tmp_path):
        tiny_model(bi_label_type="BIO").save_pretrained(tmp_path)
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)
        assert model.config.bi_label_type == "BIO"
        assert model(torch.ones(1, 5, dtype=torch.long)).bi_logits.shape == (1, 5, 3)

    def test_token_weights_survive_json(self, tmp_path):
        tiny_config(lm_head_weight={5: 0.5}).save_pretrained(tmp_path)
        assert QwenLongCPRSConfig.from_pretrained(tmp_path).lm_head_weight == {5: 0.5}

    def test_the_config_of_another_model_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(ModelError, match="of a 'llama' model"):
            QwenLongCPRSConfig.from_pretrained(tmp_path)


class TestLoading:
    def test_a_round_trip_through_the_auto_classes_changes_nothing(self, tmp_path):
        model = tiny_model(bi_loss_weight=[2.0, 1.0, 0.5, 2.0], bidirectional_start_layer=2)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
        assert type(loaded) is QwenLongCPRSForTokenCritic
        assert type(AutoConfig.from_pretrained(tmp_path)) is QwenLongCPRSConfig
        assert type(AutoModel.from_pretrained(tmp_path)) is QwenLongCPRSModel
        assert loaded.config.bidirectional_start_layer == 2
        assert loaded.config.bi_loss_weight == [2.0, 1.0, 0.5, 2.0]
        assert loaded.config.id2label == {0: "B", 1: "I", 2: "O", 3: "E"}
        assert loaded.config.label2id == {"B": 0, "I": 1, "O": 2, "E": 3}
        ids, _, _ = ids_and_mask("none")
        assert torch.equal(loaded.eval()(ids).bi_logits, model(ids).bi_logits)
        loaded.save_pretrained(tmp_path / "again")
        first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_the_released_layout_is_read(self, tmp_path):
        save(tmp_path, released=True, num_hidden_layers=23, bidirectional_start_layer=21)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)
        assert [layer.self_attn.is_causal for layer in model.model.layers] == [True] * 21 + [False] * 2
        assert model.config.bi_label_type == "BIOE"

    def test_too_few_layers_of_the_released_layout_are_an_error_unless_told(self, tmp_path):
        save(tmp_path, released=True)
        with pytest.raises(ArgumentError, match="the model has 5 layers, so none of them would be bidirectional"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path, bidirectional_start_layer=3)
        assert not model.model.layers[3].self_attn.is_causal

    @pytest.mark.parametrize("name", ["cls_head.bias", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
    def test_a_missing_tensor_is_named(self, tmp_path, name):
        self.edit(save(tmp_path), lambda tensors: tensors.pop(name))
        with pytest.raises(ModelError, match=f"{name} is missing"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)

    def test_the_body_alone_lacks_nothing_either(self, tmp_path):
        ids, _, _ = ids_and_mask("none")
        whole = save(tmp_path)
        body = AutoModel.from_pretrained(whole)
        assert type(body) is QwenLongCPRSModel
        assert torch.equal(body.eval()(ids).last_hidden_state, tiny_model().model(ids).last_hidden_state)
        self.edit(whole, lambda tensors: tensors.pop("model.norm.weight"))
        with pytest.raises(ModelError, match=r"norm\.weight is missing"):
            AutoModel.from_pretrained(whole)

    def test_a_checkpoint_in_several_files_loads_like_the_released_one(self, tmp_path):
        tiny_model().save_pretrained(tmp_path, max_shard_size="40KB")
        files = sorted(tmp_path.glob("model-*.safetensors"))
        assert len(files) > 3
        loaded, expected = (
            model.state_dict() for model in (QwenLongCPRSForTokenCritic.from_pretrained(tmp_path), tiny_model())
        )
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        files[1].unlink()
        with pytest.raises(OSError, match=files[1].name):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)

    @pytest.mark.parametrize("kind", [QwenLongCPRSForTokenCritic, AutoModel, AutoModelForTokenClassification])
    def test_no_attention_is_fetched_whoever_asks_for_it(self, tmp_path, kind):
        path = save(tmp_path) / "config.json"
        with pytest.raises(ArgumentError, match="attn_implementation must be one of sdpa, eager"):
            kind.from_pretrained(tmp_path, attn_implementation="some-owner/some-kernel")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "some-owner/some-kernel"}))
        attention = "sdpa"
        with contextlib.suppress(ArgumentError):  # transformers 5.0 does not read it there
            attention = kind.from_pretrained(tmp_path).config._attn_implementation
        assert attention == "sdpa"
        assert kind.from_pretrained(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"

    def test_a_misshapen_tensor_is_named_with_its_shapes(self, tmp_path):
        self.edit(save(tmp_path), lambda tensors: tensors.update({"cls_head.weight": torch.zeros(3, 32)}))
        with pytest.raises(ModelError, match=r"cls_head.weight has shape \[3, 32\], not \[4, 32\]"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)

    @pytest.mark.parametrize("kind", [QwenLongCPRSForTokenCritic, QwenLongCPRSModel])
    def test_the_configuration_of_another_model_is_refused(self, tmp_path, kind):
        with pytest.raises(ArgumentError, match="config must be a QwenLongCPRSConfig, not Qwen2Config"):
            kind.from_pretrained(save(tmp_path), config=Qwen2Config())

    def test_words_of_a_quantized_head_are_refused(self):
        model = tiny_model()
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
        with pytest.raises(ArgumentError, match="quantize it without lm_head and cls_head"):
            model(ids_and_mask("none")[0], label_ids=torch.tensor([1, 2]))

    def test_a_tensor_that_nothing_takes_is_warned_of(self, tmp_path):
        self.edit(save(tmp_path), lambda tensors: tensors.update({"score.weight": torch.zeros(3)}))
        with pytest.warns(UserWarning, match=r"score\.weight"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)

    def test_without_an_lm_head_it_marks_and_names_nothing(self, tmp_path):
        self.edit(save(tmp_path), lambda tensors: tensors.pop("lm_head.weight"))
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)
        ids, _, _ = ids_and_mask("none")
        assert model(ids).bi_logits.shape == (1, 12, 4)
        with pytest.raises(ArgumentError, match="no lm_head"):
            model(ids, label_ids=torch.tensor([1, 2]))
        model.save_pretrained(tmp_path / "again")
        assert QwenLongCPRSForTokenCritic.from_pretrained(tmp_path / "again").lm_head is None

    def test_tied_embeddings_are_the_lm_head(self, tmp_path):
        tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

    def test_words_are_scored_by_an_offloaded_lm_head_too(self, tmp_path):
        save(tmp_path)
        ids, words = ids_and_mask("none")[0], torch.tensor([40, 7, 300])
        places = {"model": "cpu", "cls_head": "cpu", "lm_head": "disk"}
        model = QwenLongCPRSForTokenCritic.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
        assert model.lm_head.weight.device.type == "meta"
        with torch.inference_mode():
            found, whole = (model.eval()(ids, label_ids=words).label_logits, tiny_model()(ids, label_ids=words).label_logits)
        assert torch.equal(found, whole)
        assert model.lm_head.weight.device.type == "meta"

    def test_only_safetensors_are_loaded(self, tmp_path):
        save(tmp_path)
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match="only safetensors"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path, use_safetensors=False)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            QwenLongCPRSForTokenCritic.from_pretrained(tmp_path)

    def edit(self, folder, change):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})


def logits_for(probability):
    """Of two classes, the first with this probability."""
    return torch.tensor([[math.log(probability), math.log(1 - probability)]])


class TestLosses:
    @pytest.mark.parametrize(
        ("probability", "weight", "expected", "reference"), [(0.9, 10.0, 0.010536, 0.446961), (0.3, 0.5, 0.294973, 0.123139)]
    )
    def test_a_class_weight_scales_focal_loss_and_stays_out_of_its_exponent(self, probability, weight, expected, reference):
        given = logits_for(probability), torch.tensor([0]), "focal", [weight, 1.0]
        assert tag_loss(*given).item() == pytest.approx(expected, rel=1e-4)
        assert reference_tag_loss(*given).item() == pytest.approx(reference, rel=1e-4)

    @pytest.mark.parametrize("kind", ["focal", "ce"])
    def test_ignored_positions_do_not_dilute(self, kind):
        logits, labels = torch.randn(1, 8, 4), torch.tensor([[0, 1, 2, 3, 2, 2, 1, 0]])
        half = labels.clone()
        half[:, 4:] = -100
        weights = [10.0, 10.0, 0.5, 10.0]
        assert tag_loss(logits, half, kind, weights).item() == pytest.approx(
            tag_loss(logits[:, :4], labels[:, :4], kind, weights).item(), rel=1e-5
        )

    @pytest.mark.parametrize("kind", ["focal", "ce"])
    def test_where_all_is_ignored_the_loss_is_zero_with_a_gradient_of_zeros(self, kind):
        logits = torch.randn(1, 3, 4, requires_grad=True)
        loss = tag_loss(logits, torch.full((1, 3), -100), kind)
        loss.backward()
        assert loss.item() == 0.0
        assert not logits.grad.any()

    def test_the_language_term_is_not_shifted_and_needs_the_labelled_rows_alone(self):
        hidden, head = torch.randn(2, 5, 8), torch.randn(20, 8)
        labels = torch.full((2, 5), -100)
        labels[0, 2], labels[1, 4] = 7, 3
        expected = functional.cross_entropy(torch.stack((head @ hidden[0, 2], head @ hidden[1, 4])), torch.tensor([7, 3]))
        assert language_loss(hidden, head, labels).item() == pytest.approx(expected.item(), rel=1e-5)
        weighted = language_loss(hidden, head, labels, {7: 0.0})
        assert weighted.item() == pytest.approx(functional.cross_entropy(head @ hidden[1, 4], torch.tensor(3)).item(), rel=1e-5)

    def test_the_loss_of_the_model_is_the_sum_of_its_terms(self):
        model, (ids, _, _) = tiny_model(), ids_and_mask("none")
        tags = torch.arange(12)[None] % 4
        both = model(ids, labels=ids, bi_labels=tags).loss
        parts = model(ids, labels=ids).loss + model(ids, bi_labels=tags).loss
        assert both.item() == pytest.approx(parts.item(), rel=1e-5)
        model.config.ignore_lm_head = True
        assert model(ids, labels=ids).loss is None
        both.backward()
        assert model.cls_head.weight.grad.any()
        assert model.lm_head.weight.grad.any()


def test_every_error_is_one_of_ours():
    with pytest.raises(CPRSError, match="either input_ids or inputs_embeds"):
        tiny_model()()
