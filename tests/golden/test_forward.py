"""Forward passes, losses and gradients of the reference, on two small checkpoints of the released layout."""

import pytest
import torch

pytestmark = pytest.mark.golden

MODELS = ("model_l28_f32", "model_l24_bf16")
CASES = (
    "len5_en len37_en len130_zh len300_mixed len600_en len257_randomids len50_nomask "
    "batch2_nopad batch2_rightpad batch2_leftpad"
).split()


def difference(ours, theirs, valid):
    """Largest difference relative to the largest value, over valid positions."""
    return ((ours - theirs)[valid].abs().max() / theirs[valid].abs().max()).item()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_logits_and_tags_are_those_of_the_reference(tensors, models, model, implementation, case):
    golden = {name.split(".")[1]: value for name, value in tensors(model).items() if name.startswith(f"{case}.")}
    ids, mask = golden["input_ids"], golden.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    critic = models(model, implementation)
    with torch.inference_mode():
        found = critic(ids, mask, output_hidden_states=True)
        words = critic.lm_head(critic.model(ids, mask).last_hidden_state)[:, golden["lm_positions"]]
    states = found.hidden_states
    assert difference(states[21], golden["hidden_after_layer20"], valid) < 1e-3
    assert difference(states[22], golden["hidden_after_layer21"], valid) < 1e-3
    assert difference(states[-1], golden["hidden_after_last_layer"], valid) < 1e-3
    assert difference(critic.model.norm(states[-1]), golden["hidden_final_norm"], valid) < 1e-3
    theirs = golden["bi_logits_sdpa" if implementation == "sdpa" else "bi_logits"]
    assert difference(found.bi_logits, theirs, valid) < 1e-3
    assert torch.equal(found.bi_logits.argmax(-1)[valid], golden["tags"][valid])
    assert difference(words, golden["lm_logits"], valid[:, golden["lm_positions"]]) < 1e-3


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model", MODELS)
def test_losses_and_gradients_are_those_of_the_reference(tensors, read, models, model, implementation):
    golden = tensors(model)
    critic = models(model, implementation)
    kept = critic.config.to_dict()
    seen = {"losses": 0, "norms": 0}
    for record in read(f"forward_{model}")["losses"]:
        case = record["case"]
        critic.config.reference_loss = True
        critic.config.bi_loss_type = record["bi_loss_type"]
        critic.config.bi_loss_weight = record["bi_loss_weight"]
        critic.config.ignore_lm_head = record["ignore_lm_head"]
        weights = record["lm_head_weight"]
        critic.config.lm_head_weight = weights and {int(token): weight for token, weight in weights.items()}
        critic.zero_grad()
        loss = critic(
            golden[f"{case}.input_ids"],
            golden.get(f"{case}.attention_mask"),
            labels=golden[f"{case}.labels"] if record["labels"] else None,
            bi_labels=golden[f"{case}.bi_labels"] if record["bi_labels"] else None,
        ).loss
        assert loss.item() == pytest.approx(record["loss"], rel=1e-4)
        seen["losses"] += 1
        if record.get("grad_norms"):
            loss.backward()
            for name, norm in record["grad_norms"].items():
                assert critic.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=2e-3), (record, name)
                seen["norms"] += 1
            known = [parameter.grad.norm() for parameter in critic.parameters() if parameter.grad is not None]
            assert torch.stack(known).norm().item() == pytest.approx(record["grad_norm_total"], rel=2e-3)
    for name in ("bi_loss_type", "bi_loss_weight", "ignore_lm_head", "lm_head_weight", "reference_loss"):
        setattr(critic.config, name, kept[name])
    assert seen == {"losses": 112, "norms": 168}


@pytest.mark.parametrize("model", MODELS)
def test_the_files_are_read_as_they_are(goldens, models, model):
    from cprs_integrations.models import QwenLongCPRSForTokenCritic

    loaded = QwenLongCPRSForTokenCritic.from_pretrained(goldens / model, dtype="auto")
    assert loaded.dtype == (torch.bfloat16 if model.endswith("bf16") else torch.float32)
    config = loaded.config
    assert config.model_type == "qwenlong_cprs"
    assert config.bidirectional_start_layer == 21
    assert config.bi_loss_type == "focal"
    assert config.bi_loss_weight == (None if model.endswith("bf16") else [10.0, 10.0, 0.5, 10.0])
    assert [layer.self_attn.is_causal for layer in loaded.model.layers] == [True] * 21 + [False] * (
        config.num_hidden_layers - 21
    )
