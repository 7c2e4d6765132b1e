import json

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

MODELS = ("model_l28_f32", "model_l24_bf16")


@pytest.fixture(scope="session")
def goldens(request):
    return request.config.getoption("--goldens", skip=True)


@pytest.fixture(scope="session")
def read(goldens):
    """Read a JSON file of the goldens."""
    known = {}

    def reading(name):
        if name not in known:
            known[name] = json.loads((goldens / f"{name}.json").read_text(encoding="utf-8"))
        return known[name]

    return reading


@pytest.fixture(scope="session")
def tensors(goldens):
    """Read the tensors of a checkpoint's forward passes."""
    known = {}

    def reading(model):
        if model not in known:
            known[model] = load_file(goldens / f"forward_{model}.safetensors")
        return known[model]

    return reading


@pytest.fixture(scope="session")
def tokenizer(goldens):
    """The tokenizer as the reference uses it: control tokens in a text are control tokens."""
    return Tokenizer.from_file(str(goldens / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="session")
def models(goldens):
    """Load a checkpoint in float32."""
    import torch

    from cprs_integrations.models import QwenLongCPRSForTokenCritic

    known = {}

    def loading(name, implementation="sdpa", **config):
        key = (name, implementation, *config)
        if key not in known:
            known[key] = QwenLongCPRSForTokenCritic.from_pretrained(
                goldens / name, dtype=torch.float32, attn_implementation=implementation, **config
            ).eval()
        return known[key]

    return loading
