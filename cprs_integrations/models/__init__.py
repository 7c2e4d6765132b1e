"""QwenLong-CPRS for transformers: a Qwen2 whose upper layers are bidirectional, with a head of BIOE tags.

Importing this registers it with `AutoConfig`, `AutoModel` and `AutoModelForTokenClassification`. Needs the extra "torch".
"""

from cprs_integrations.errors import require

require("torch", "torch")
require("transformers", "torch")

from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification  # noqa: E402 - the extra must be there

from cprs_integrations.models.configuration_qwenlong import QwenLongCPRSConfig  # noqa: E402
from cprs_integrations.models.modeling_qwenlong import (  # noqa: E402
    QwenLongCPRSForTokenCritic,
    QwenLongCPRSModel,
    TokenCriticOutput,
)

__all__ = ["QwenLongCPRSConfig", "QwenLongCPRSForTokenCritic", "QwenLongCPRSModel", "TokenCriticOutput"]

AutoConfig.register(QwenLongCPRSConfig.model_type, QwenLongCPRSConfig, exist_ok=True)
AutoModel.register(QwenLongCPRSConfig, QwenLongCPRSModel, exist_ok=True)
AutoModelForTokenClassification.register(QwenLongCPRSConfig, QwenLongCPRSForTokenCritic, exist_ok=True)
