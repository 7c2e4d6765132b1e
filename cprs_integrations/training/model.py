"""The small critic as a torch module: a MiniLM cross-encoder with one BIOE label a token."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel

BIOE = 4
ASKED = 3  # keyword, sentence, paragraph
OUTSIDE = 2
TEXT_SEGMENT = 2  # [CLS] instruction [SEP] query [SEP] text, and further [SEP] between documents


class MiniModel(nn.Module):
    """Token ids in, BIOE logits out.

    The separators alone tell instruction, query and text apart, so ids are the only input. A token of the text that
    also stands in the query gets a learned vector added to its embedding, and a second one the more of it the rarer the
    token is; the tokens of the query are told how rare they are, too. Exact matches of rare words (numbers, names, keys)
    are what a small encoder reads worst.

    A second head goes on predicting what MiniLM itself thinks of a unit, its cosine with the query. A third one tells, from
    [CLS], what the instruction asks for: words, sentences or paragraphs.
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
        self.head = nn.Linear(size, BIOE)
        self.similarity = nn.Linear(size, 1)
        self.asked = nn.Linear(size, ASKED)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.similarity.weight)
        nn.init.zeros_(self.asked.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([-4.0, -2.0, 0.0, -4.0]))

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

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits [batch, length, 4] of B, I, O, E for `ids` [batch, length]; the mask is 1 where there is a token."""
        return self.head(self.hidden(ids, attention_mask))  # type: ignore[no-any-return]

    def hidden(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states [batch, length, 384], from which all heads read."""
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
