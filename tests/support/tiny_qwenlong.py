"""A small QwenLong-CPRS checkpoint with random weights, made anew by the tests: there is no trained one offline."""

import json

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cprs_integrations.models import QwenLongCPRSConfig, QwenLongCPRSForTokenCritic

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEXT = (
    "Paris is the capital of France. It lies on the Seine. The mountain is high; who first climbed it?",
    "One of the special magic numbers for harbour is: 4821. Bread is made of flour, water and yeast.",
    "the needles facts chains are tagged outside of the documents\n\nVAR X1 = X2\n  system user context\n",
)


def tiny_tokenizer():
    """A byte-level BPE in the manner of Qwen2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=list(CONTROL), initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(_TEXT * 2, trainer)
    return tokenizer


def tiny_config(**changed):
    values = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bidirectional_start_layer": 3,
    }
    return QwenLongCPRSConfig(**(values | changed))


def tiny_model(seed=0, **changed):
    torch.manual_seed(seed)
    model = QwenLongCPRSForTokenCritic(tiny_config(**changed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def save(folder, released=False, **changed):
    """Write a checkpoint; `released`: in the layout of the released one, whose config says qwen2 and little else."""
    tiny_model(**changed).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    if released:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        ours = ("bidirectional_start_layer", "bi_label_type", "bi_loss_type", "bi_loss_weight", "ignore_lm_head")
        for name in (*ours, "lm_head_weight", "reference_loss", "id2label", "label2id", "layer_types"):
            config.pop(name, None)
        config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLMandBIO"]}
        path.write_text(json.dumps(config))
    return folder
