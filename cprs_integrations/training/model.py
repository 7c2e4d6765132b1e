"""The small critic as a torch module: a MiniLM cross-encoder that tags sentences and words."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertModel

BIOE = 4
ASKED = 3  # keyword, sentence, paragraph
OUTSIDE = 2
TEXT_SEGMENT = 2  # [CLS] instruction [SEP] query [SEP] text, and further [SEP] between documents


class Readings(NamedTuple):
    """What the critic says of a batch of windows.

    Attributes:
        sentences, words: [windows, tokens, 4] logits of B, I, O, E.
        similar: [windows, tokens] MiniLM's cosine of the token's unit with the query, as a mean over the unit, in fifths.
        asked: [windows, 3] logits of words, sentences and paragraphs being asked for.
    """

    sentences: Tensor
    words: Tensor
    similar: Tensor
    asked: Tensor


def mixed_precision(device: str) -> torch.autocast:
    """Compute in bfloat16 where the device does so by itself: a CPU that has to emulate it is fourteen times slower with it."""
    has_it = device != "cpu" or (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=has_it)


class MiniModel(nn.Module):
    """Token ids in, BIOE logits out: one head tags the sentences worth keeping, one the words in them that answer.

    The separators alone tell instruction, query and text apart, so ids are the only input. A token of the text that
    also stands in the query gets a learned vector added to its embedding, and a second one the more of it the rarer the
    token is; the tokens of the query are told how rare they are, too. Exact matches of rare words (numbers, names, keys)
    are what a small encoder reads worst.

    Both learn from every window, whatever its instruction asks for; that is told from [CLS] by a head of its own: words,
    sentences or paragraphs. A last head goes on predicting what MiniLM itself thinks of a unit, its cosine with the query.
    """

    rarity: Tensor

    def __init__(self, encoder: BertModel, separator: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.separator = separator
        size = encoder.config.hidden_size
        self.match = nn.Parameter(torch.zeros(size))
        self.rare_match = nn.Parameter(torch.zeros(size))
        self.rare_query = nn.Parameter(torch.zeros(size))
        self.register_buffer("rarity", torch.zeros(encoder.config.vocab_size))
        self.sentences = nn.Linear(size, BIOE)
        self.words = nn.Linear(size, BIOE)
        self.similarity = nn.Linear(size, 1)
        self.asked = nn.Linear(size, ASKED)
        for head in (self.sentences, self.words, self.similarity, self.asked):
            nn.init.zeros_(head.weight)
        with torch.no_grad():
            self.sentences.bias.copy_(torch.tensor([-4.0, -2.0, 0.0, -4.0]))
            self.words.bias.copy_(torch.tensor([-5.0, -4.0, 0.0, -5.0]))

    @classmethod
    def from_minilm(cls, folder: Path, separator: int | None) -> "MiniModel":
        """Start from the weights of all-MiniLM-L6-v2 in `folder`."""
        encoder = BertModel.from_pretrained(
            folder, add_pooling_layer=False, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
        )  # without dropout CPUs have a fused attention, four times as fast; a run of one epoch can do without
        return cls(encoder, separator)

    def freeze(self, layers: int) -> None:
        """Let the embeddings of words keep their values; with `layers` > 0 all embeddings and so many lowest layers."""
        self.encoder.embeddings.word_embeddings.requires_grad_(False)
        if layers:
            for part in (self.encoder.embeddings, *self.encoder.encoder.layer[:layers]):
                part.requires_grad_(False)
            for vector in (self.match, self.rare_match, self.rare_query):
                vector.requires_grad_(False)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Readings:
        """Read `ids` [batch, length]; the mask is 1 where there is a token."""
        hidden = self._hidden(ids, attention_mask)
        return Readings(self.sentences(hidden), self.words(hidden), self.similarity(hidden)[..., 0], self.asked(hidden[:, 0]))

    def _hidden(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        is_separator = torch.eq(ids, self.separator or 0).to(torch.int64)
        segment = torch.cumsum(is_separator, dim=1) - is_separator
        in_query = (segment == 1) & (is_separator == 0)
        in_text = (segment >= TEXT_SEGMENT) & (is_separator == 0)
        equal = ids[:, :, None] == ids[:, None, :]
        matched = in_text & (equal & in_query[:, None, :]).any(dim=2)
        embedded = self.encoder.embeddings.word_embeddings(ids)
        rarity = self.rarity[ids][:, :, None]
        embedded = embedded + matched[:, :, None].to(embedded.dtype) * (self.match + rarity * self.rare_match)
        embedded = embedded + in_query[:, :, None].to(embedded.dtype) * rarity * self.rare_query
        states = self.encoder(
            inputs_embeds=embedded,
            token_type_ids=(segment >= TEXT_SEGMENT).to(torch.int64),
            attention_mask=attention_mask,
        ).last_hidden_state
        return states  # type: ignore[no-any-return]


def kept_odds(logits: Tensor) -> Tensor:
    """Return the log-odds of being kept, of logits [..., 4] of B, I, O, E."""
    outside = logits[..., OUTSIDE]
    return torch.logsumexp(torch.stack((logits[..., 0], logits[..., 1], logits[..., 3]), dim=-1), dim=-1) - outside
