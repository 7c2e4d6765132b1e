"""The configuration of QwenLong-CPRS: Qwen2's, where attention turns bidirectional, and how the critic is trained."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config

from cprs_integrations.errors import ArgumentError, ModelError

_SCHEMES = ("BIOE", "BIO")
_LOSSES = ("focal", "ce")
_FIELDS = (
    *("bidirectional_start_layer", "bi_label_type", "bi_loss_type", "bi_loss_weight"),
    *("ignore_lm_head", "lm_head_weight", "reference_loss"),
)


class QwenLongCPRSConfig(Qwen2Config):
    """Configuration of a QwenLong-CPRS critic (arXiv 2505.18092, section 3).

    Reads the released layout too, whose config.json calls itself `qwen2`; fields that it lacks have their defaults.

    Args:
        bidirectional_start_layer: layers from this one on see the whole window, those below only what came before. No
            released config names it; there it is 21.
        bi_label_type: the tag scheme, "BIOE" or "BIO": one row of `cls_head` a letter, in this order.
        bi_loss_type: the loss of the tags, "focal" or "ce" (cross-entropy).
        bi_loss_weight: a weight for each tag; None: all count the same.
        ignore_lm_head: train without the language modelling term.
        lm_head_weight: weights of single tokens in the language modelling term, by token id; others weigh 1.
        reference_loss: compute the losses as the released training code does, its normalization included (see
            `cprs_integrations.models.losses`).
        **kwargs: the fields of `Qwen2Config`.

    Raises:
        ArgumentError: a field has a value it cannot have.
    """

    model_type = "qwenlong_cprs"

    def __init__(
        self,
        *,
        bidirectional_start_layer: int = 21,
        bi_label_type: str = "BIOE",
        bi_loss_type: str = "focal",
        bi_loss_weight: list[float] | None = None,
        ignore_lm_head: bool = False,
        lm_head_weight: Mapping[int | str, float] | None = None,
        reference_loss: bool = False,
        **kwargs: Any,
    ) -> None:
        if bi_label_type not in _SCHEMES:
            raise ArgumentError(f"bi_label_type must be one of {', '.join(_SCHEMES)}, not {bi_label_type!r}")
        if bi_loss_type not in _LOSSES:
            raise ArgumentError(f"bi_loss_type must be one of {', '.join(_LOSSES)}, not {bi_loss_type!r}")
        if bi_loss_weight is not None and len(bi_loss_weight) != len(bi_label_type):
            raise ArgumentError(f"bi_loss_weight must have one weight a tag of {bi_label_type}, not {bi_loss_weight}")
        if kwargs.get("use_sliding_window"):
            raise ArgumentError("use_sliding_window=True is not supported: a critic reads whole windows; leave it out")
        # nothing is generated, so nothing is cached
        tags = {"id2label": dict(enumerate(bi_label_type)), "label2id": {tag: row for row, tag in enumerate(bi_label_type)}}
        super().__init__(**{**kwargs, **tags, "use_cache": False})
        layers = self.num_hidden_layers
        if type(bidirectional_start_layer) is not int or not 0 <= bidirectional_start_layer < layers:
            raise ArgumentError(
                f"bidirectional_start_layer={bidirectional_start_layer!r}: the model has {layers} layers, so none of them "
                f"would be bidirectional; give a layer from 0 to {layers - 1}"
            )
        self.bidirectional_start_layer = bidirectional_start_layer
        self.bi_label_type, self.bi_loss_type, self.bi_loss_weight = bi_label_type, bi_loss_type, bi_loss_weight
        self.ignore_lm_head, self.reference_loss = ignore_lm_head, reference_loss
        self.lm_head_weight: dict[int, float] | None = None
        if lm_head_weight is not None:  # the keys of JSON are strings
            self.lm_head_weight = {int(token): float(weight) for token, weight in lm_head_weight.items()}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json, of ours or of the released layout.

        Raises:
            ModelError: it belongs to another kind of model.
        """
        found, unused = super().get_config_dict(*args, **kwargs)
        kind = found.get("model_type")
        if kind not in (None, "qwen2", cls.model_type):
            raise ModelError(
                f"config.json of {args[0]!r} is of a {kind!r} model; QwenLong-CPRS needs 'qwen2' or {cls.model_type!r}"
            )
        # what the caller sets is checked with the rest, not put on top afterwards
        given = {name: unused.pop(name) for name in _FIELDS if name in unused}
        return {**found, **given, "model_type": cls.model_type}, unused
