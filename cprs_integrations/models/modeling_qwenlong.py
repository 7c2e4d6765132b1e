"""QwenLong-CPRS (arXiv 2505.18092, section 3): causal layers below, bidirectional ones above, two heads on top."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2PreTrainedModel
from transformers.utils import ModelOutput, is_flash_attn_2_available, is_flash_attn_3_available

from cprs_integrations.errors import ArgumentError, ModelError
from cprs_integrations.models.configuration_qwenlong import QwenLongCPRSConfig
from cprs_integrations.models.losses import language_loss, reference_tag_loss, tag_loss

_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
_HEADS = ("cls_head", "lm_head")
_SPARED_BY = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")  # whatever a quantization config calls it


def check_attention(name: str) -> None:
    """Check that an implementation is one of ours and installed: transformers would fetch the code of another.

    Raises:
        ArgumentError: it is not.
    """
    if name not in _ATTENTION:
        raise ArgumentError(f"attn_implementation must be one of {', '.join(_ATTENTION)}, not {name!r}")
    is_here = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if name in is_here and not is_here[name]():
        raise ArgumentError(f"attn_implementation={name!r} needs the package flash-attn and a GPU; install it, or take 'sdpa'")


class Masks(NamedTuple):
    """What the two kinds of layers get as attention mask; None leaves it to `is_causal` of the layer."""

    causal: Tensor | None
    bidirectional: Tensor | None


def attention_masks(implementation: str, attention_mask: Tensor | None, hidden: Tensor) -> Masks:
    """Build the masks of one forward pass, the smallest that will do.

    Nothing of size L x L is built where nothing is padded, nor for padding on the right: causal layers never look there.

    Args:
        implementation: "sdpa", "eager" or a flash attention.
        attention_mask: [B, L], 0 where padded; None: nothing is.
        hidden: [B, L, H] the embedded tokens.
    """
    length, device = hidden.shape[1], hidden.device
    present = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.to(device).bool()
    if implementation.startswith("flash"):
        padding = None if present is None else present.to(torch.int32)  # it unpads by itself
        return Masks(padding, padding)
    causal = bidirectional = None
    if present is not None:
        keys = present | ~present.any(-1, keepdim=True)  # a row of padding alone must not divide by zero
        bidirectional = keys[:, None, None, :]
    pads_left = present is not None and bool((present[:, 1:] > present[:, :-1]).any())
    if implementation == "eager" or pads_left:
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        if bidirectional is not None:
            # padding sees itself, for the same reason
            causal = causal & (bidirectional | torch.eye(length, dtype=torch.bool, device=device))
    if implementation == "eager":
        return Masks(_additive(causal, hidden.dtype), _additive(bidirectional, hidden.dtype))
    return Masks(causal, bidirectional)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def spared(quantization: Any) -> Any:
    """A quantization config that leaves the heads as they are: the tags' is a few rows, the words' is read row by row.

    Args:
        quantization: of transformers, or a dict for one; it is not changed. Where its kind has no list of modules to leave
            out, it is returned as it is.
    """
    if isinstance(quantization, dict):
        from transformers.quantizers.auto import AutoQuantizationConfig

        quantization = AutoQuantizationConfig.from_dict(quantization)
    found = copy(quantization)
    for name in _SPARED_BY:
        if hasattr(found, name):
            setattr(found, name, list(dict.fromkeys([*(getattr(found, name) or ()), *_HEADS])))
    return found


class _Checked:
    """Loading that puts up with no missing tensor, no misshapen one and no code from elsewhere."""

    def __init__(self, config: QwenLongCPRSConfig) -> None:
        if not isinstance(config, QwenLongCPRSConfig):
            raise ArgumentError(
                f"config must be a QwenLongCPRSConfig, not {type(config).__name__}; leave it out, and the checkpoint's is read"
            )
        # before transformers looks for it; whoever asked, the caller or a checkpoint's config.json
        if config._attn_implementation is not None:
            check_attention(config._attn_implementation)
        cast(Any, super()).__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, of ours or of the released layout. Only safetensors are read, and no code is fetched.

        A checkpoint without `lm_head` is loaded without one: it marks, and names nothing.

        Args:
            pretrained_model_name_or_path: a folder or the id of a model on the hub.
            *args: as transformers' own.
            **kwargs: as transformers' own: `config`, `revision`, `local_files_only`, `device_map`, `dtype`,
                `quantization_config` (the heads are left as they are), `attn_implementation` and the rest; fields of the
                configuration too.

        Raises:
            ModelError: a tensor is missing or has the wrong shape; it is named.
            ArgumentError: the attention is not one of ours, or is not installed; the configuration is of another model.
            OSError: files are missing or the hub cannot be reached.
        """
        source, with_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        if not kwargs.pop("use_safetensors", True):
            raise ModelError(f"{source}: only safetensors are loaded; leave use_safetensors out, or convert the checkpoint")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = spared(kwargs["quantization_config"])
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = cast(Any, super()).from_pretrained(source, *args, **kwargs)
        model, info = loaded
        wrong = [
            f"{name} has shape {list(found)}, not {list(wanted)}" for name, found, wanted in sorted(info["mismatched_keys"])
        ]
        missing = set(info["missing_keys"])
        if missing == {"lm_head.weight"}:
            model.lm_head, missing = None, set()
        wrong += [f"{name} is missing" for name in sorted(missing)]
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise ModelError(f"{source}: {'; '.join(wrong[:5])}{more}; copy the checkpoint again, or mend its config.json")
        if info["unexpected_keys"]:
            names = ", ".join(sorted(info["unexpected_keys"])[:5])
            warnings.warn(f"{source}: tensors that no part of the model takes are left out: {names}", stacklevel=2)
        return (model, info) if with_info else model


class QwenLongCPRSModel(_Checked, Qwen2Model):
    """The body: a Qwen2 whose layers from `config.bidirectional_start_layer` on attend to the whole window."""

    config: QwenLongCPRSConfig
    config_class = QwenLongCPRSConfig
    _supports_flex_attn = False
    _keys_to_ignore_on_load_unexpected = [r"^cls_head\.", r"^lm_head\."]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: QwenLongCPRSConfig) -> None:
        super().__init__(config)
        # without a mask this alone decides: Qwen2's default would make every layer causal
        for number, layer in enumerate(self.layers):
            cast(Any, layer).self_attn.is_causal = number < config.bidirectional_start_layer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        **unused: Any,
    ) -> BaseModelOutput:
        """Encode windows.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded, on either side; None: nothing is. States of padding mean nothing.
            position_ids: [B, L]; None: 0 to L - 1 in every row, left padding included.
            inputs_embeds: [B, L, H] instead of `input_ids`.
            output_hidden_states: return the states before each layer, and the last, too.
            **unused: what other models take (`use_cache` and the like).

        Raises:
            ArgumentError: both or none of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ArgumentError("give either input_ids or inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        masks = attention_masks(self.config._attn_implementation, attention_mask, hidden)
        positions = self.rotary_emb(hidden, position_ids)
        states = [hidden]
        for layer in self.layers:
            mask = masks.causal if cast(Any, layer).self_attn.is_causal else masks.bidirectional
            hidden = layer(hidden, attention_mask=mask, position_embeddings=positions)
            if output_hidden_states:
                states.append(hidden)
        return BaseModelOutput(
            last_hidden_state=self.norm(hidden), hidden_states=tuple(states) if output_hidden_states else None
        )


@dataclass
class TokenCriticOutput(ModelOutput):
    """What the critic says of windows.

    Attributes:
        loss: of the labels that were given; None if none were.
        bi_logits: [B, L, 4] of B, I, O and E (3 of B, I and O with that tag scheme).
        label_logits: [B, L, tags + 1] of the words asked for, if any were.
        hidden_states: if asked for: [B, L, H] before each layer, and after the last.
    """

    loss: Tensor | None = None
    bi_logits: Tensor | None = None
    label_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class QwenLongCPRSForTokenCritic(_Checked, Qwen2PreTrainedModel):
    """The critic: `cls_head` scores the tags of every token, `lm_head` the words that name what is marked."""

    config: QwenLongCPRSConfig
    config_class = QwenLongCPRSConfig
    _supports_flex_attn = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: QwenLongCPRSConfig) -> None:
        super().__init__(config)
        self.model = QwenLongCPRSModel(config)
        self.lm_head: nn.Linear | None = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.cls_head = nn.Linear(config.hidden_size, len(config.bi_label_type))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        bi_labels: Tensor | None = None,
        label_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        **unused: Any,
    ) -> TokenCriticOutput:
        """Score every token of some windows.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded, on either side; None: nothing is.
            position_ids: [B, L]; None: 0 to L - 1 in every row, left padding included.
            inputs_embeds: [B, L, H] instead of `input_ids`.
            labels: int64 [B, L] the token that names each position, -100 where there is none: adds the language
                modelling term to the loss, unless `config.ignore_lm_head`.
            bi_labels: int64 [B, L] tags, -100 where there is none: adds their term to the loss.
            label_ids: int64 [tags + 1] the first tokens of the tag words, and last that of "outside": their logits
                alone are computed.
            output_hidden_states: return the states before each layer, and the last, too.
            **unused: what other models take.

        Raises:
            ArgumentError: the wrong inputs are given, or the words' logits are asked of a model without `lm_head`.
        """
        body = self.model(input_ids, attention_mask, position_ids, inputs_embeds, output_hidden_states)
        hidden = body.last_hidden_state
        bi_logits = self.cls_head(hidden)
        return TokenCriticOutput(
            loss=self._loss(hidden, bi_logits, labels, bi_labels),
            bi_logits=bi_logits,
            label_logits=None if label_ids is None else self._label_logits(hidden, label_ids),
            hidden_states=body.hidden_states,
        )

    def _loss(self, hidden: Tensor, bi_logits: Tensor, labels: Tensor | None, bi_labels: Tensor | None) -> Tensor | None:
        config, terms = self.config, []
        if labels is not None and not config.ignore_lm_head:
            with self._words() as words:
                terms.append(language_loss(hidden, words, labels, config.lm_head_weight))
        if bi_labels is not None:
            loss = reference_tag_loss if config.reference_loss else tag_loss
            terms.append(loss(bi_logits, bi_labels, config.bi_loss_type, config.bi_loss_weight))
        return torch.stack(terms).sum() if terms else None

    def _label_logits(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        with self._words() as words:
            if not words.is_floating_point():
                raise ArgumentError(
                    "label_ids: the lm_head of this checkpoint is quantized, so its rows cannot be read one by one; "
                    "quantize it without lm_head and cls_head"
                )
            rows = words[label_ids.to(words.device)].to(hidden.device)
        return functional.linear(hidden, rows)

    @contextmanager
    def _words(self) -> Iterator[Tensor]:
        """The weights of the LM head, fetched for the time being if a device map has put them on a CPU or a disk."""
        if self.lm_head is None:
            raise ArgumentError("label_ids or labels: this checkpoint has no lm_head, so it cannot name what it marks")
        if not hasattr(self.lm_head, "_hf_hook"):
            yield self.lm_head.weight
            return
        # what is offloaded comes back for a forward pass of the module, which is not made here
        from accelerate.utils import align_module_device

        with align_module_device(self.lm_head):
            yield self.lm_head.weight

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the LM head, whose weights may be those of the embeddings."""
        return self.lm_head
