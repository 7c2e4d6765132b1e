"""QwenLong-CPRS beside the procedure of its released server, with random weights: speed does not depend on them.

    python benchmarks/qwenlong.py --shape 7b --device cuda --tokens 16384 32768 65536 131072
    python benchmarks/qwenlong.py --shape small --tokens 4096 --window 512     # proves that it runs, on a CPU
    python benchmarks/qwenlong.py --kinds ours compiled prompt-once            # what else there is to be had

Ours is the whole path, from text to compressed context. The reference's procedure is re-created from its description: one
window at a time, an explicit mask [1, 1, L, L] in every layer, autograd on. Every byte of the text is a token. Utilization is
the model's floating point operations (those that attention needs, padding and masked halves left out) over the time of the
forward passes, in parts of what a large matrix product reaches on the same device. "Padding" is what packing windows without
any could save at most. Two more kinds have been tried and are not what the critic does: its layers compiled, and the prompt,
which all windows begin with, read once for the causal layers.
"""

import argparse
import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.base import TokenScores
from cprs_integrations.critics.qwenlong import QwenLongCritic
from cprs_integrations.models import QwenLongCPRSConfig, QwenLongCPRSForTokenCritic
from cprs_integrations.windows import Window

SHAPES = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "bidirectional_start_layer": 21,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 32_768,
        "bidirectional_start_layer": 6,
    },
}
INSTRUCTION = "Extract the needles.\n## tagging rule:\n- tag the needles with 'needle'"
QUERY = "What is the special magic number for harbour?"
_SENTENCE = "The harbour master kept three ledgers, and one of the special magic numbers is 4821. "


def random_model(shape: str, device: str, dtype: torch.dtype) -> QwenLongCPRSForTokenCritic:
    config = QwenLongCPRSConfig(**SHAPES[shape], rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device("meta"):
        model = QwenLongCPRSForTokenCritic(config).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02)
    model.model.rotary_emb = Qwen2RotaryEmbedding(config).to(device)  # its buffer is in no checkpoint, so nothing has filled it
    return model.eval()


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


class TimedCritic(QwenLongCritic):
    """Notes the time of its forward passes, and the length of each window."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds, self.padded = 0.0, 0
        self.lengths: list[int] = []

    def _score_batch(self, model: QwenLongCPRSForTokenCritic, batch: list[Window]) -> list[TokenScores]:
        began = time.perf_counter()
        found = self._forward(model, batch)
        self.seconds += time.perf_counter() - began  # the answers are on the CPU: the device is done
        lengths = [len(window.prompt.ids) + len(window.ids) for window in batch]
        self.lengths += lengths
        self.padded += max(lengths) * len(lengths)
        return found

    def _forward(self, model: QwenLongCPRSForTokenCritic, batch: list[Window]) -> list[TokenScores]:
        return super()._score_batch(model, batch)


class ReferenceProcedure(TimedCritic):
    """One window at a time, masks written out, autograd on; tags from the head of BIOE alone, as the server has them."""

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        for window in windows:
            yield from self._score_batch(self.models[0], [window])

    def _forward(self, model: QwenLongCPRSForTokenCritic, batch: list[Window]) -> list[TokenScores]:
        (window,) = batch
        body = model.model
        ids = torch.tensor([[*window.prompt.ids.tolist(), *window.ids.tolist()]], device=model.device)
        hidden = body.embed_tokens(ids)
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        lowest = torch.finfo(hidden.dtype).min
        causal = torch.zeros(length, length, dtype=hidden.dtype, device=ids.device).masked_fill(~seen, lowest)[None, None]
        everything = torch.zeros_like(causal)
        positions = body.rotary_emb(hidden, torch.arange(length, device=ids.device)[None])
        for layer in body.layers:
            mask = causal if layer.self_attn.is_causal else everything
            hidden = layer(hidden, attention_mask=mask, position_embeddings=positions)
        rows = torch.from_numpy(len(window.prompt.ids) + window.rows).to(ids.device)
        logits = model.cls_head(body.norm(hidden))[0, rows]
        return [TokenScores(logits.float().softmax(-1).detach().cpu().numpy())]


class Compiled(TimedCritic):
    """Layer by layer, so that all of them share what was compiled, for any length."""

    def __init__(self, models: list[QwenLongCPRSForTokenCritic], *arguments: Any, **options: Any) -> None:
        super().__init__(models, *arguments, **options)
        for layer in models[0].model.layers:
            layer.compile(dynamic=True)


class PromptOnce(TimedCritic):
    """In the causal layers the prompt's states are the same in every window: they cannot tell what follows."""

    def __init__(self, models: list[QwenLongCPRSForTokenCritic], *arguments: Any, **options: Any) -> None:
        super().__init__(models, *arguments, **options)
        self.body = models[0].model
        self.body.forward = self._encode
        self.prompt = 0

    def _forward(self, model: QwenLongCPRSForTokenCritic, batch: list[Window]) -> list[TokenScores]:
        self.prompt = len(batch[0].prompt.ids)
        return super()._forward(model, batch)

    def _encode(self, ids: torch.Tensor, mask: torch.Tensor | None, *_: Any) -> BaseModelOutput:
        body, count = self.body, len(ids)
        hidden = body.embed_tokens(ids)
        prompt, text = hidden[:1, : self.prompt], hidden[:, self.prompt :]
        whole = body.rotary_emb(hidden, torch.arange(ids.shape[1], device=ids.device)[None])
        before, after = ([part[:, where] for part in whole] for where in (slice(self.prompt), slice(self.prompt, None)))
        seen = torch.ones(text.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(self.prompt)
        keys = None if mask is None or bool(mask.all()) else mask.bool()[:, None, None, :]
        for layer in body.layers[: body.config.bidirectional_start_layer]:
            known = _Known()
            prompt = layer(prompt, None, None, known, position_embeddings=before)
            text = layer(text, seen[None, None], None, known, position_embeddings=after)
        hidden = torch.cat((prompt.expand(count, -1, -1), text), 1)
        for layer in body.layers[body.config.bidirectional_start_layer :]:
            hidden = layer(hidden, keys, position_embeddings=whole)
        return BaseModelOutput(last_hidden_state=body.norm(hidden))


class _Known:
    """Keys and values of one layer, as its attention asks for them: first those of the prompt, then of each text behind it."""

    def __init__(self) -> None:
        self.prompt: tuple[torch.Tensor, ...] | None = None

    def update(self, *states: Any, **_: Any) -> tuple[torch.Tensor, ...]:
        found = states[:2]
        if self.prompt is None:
            self.prompt = found
            return found
        return tuple(torch.cat((old.expand(len(new), -1, -1, -1), new), 2) for old, new in zip(self.prompt, found, strict=True))


KINDS: dict[str, Callable[..., TimedCritic]] = {
    "ours": TimedCritic, "reference": ReferenceProcedure, "compiled": Compiled, "prompt-once": PromptOnce,
}  # fmt: skip


def operations(config: QwenLongCPRSConfig, length: int) -> float:
    """Floating point operations of one window."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    keys = hidden // heads * config.num_key_value_heads
    layer = 2 * length * hidden * (2 * hidden + 2 * keys + 3 * config.intermediate_size)
    full = 4 * length * length * hidden
    causal = config.bidirectional_start_layer
    return config.num_hidden_layers * layer + full * (config.num_hidden_layers - causal) + full / 2 * causal


def product_speed(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of several."""
    size = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(4):
            product = left @ right
        product[0, 0].item()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - began))
    return best


def peak(device: str) -> str:
    """How much was in use at most: of the device in this run, or of this process so far on a CPU."""
    if device.startswith("cuda"):
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB so far"


def report(name: str, critic: TimedCritic, text: str, device: str, speed: float) -> None:
    engine = CPRSEngine(critic=critic)
    engine.compress(text[: critic.limits.window], QUERY, instruction=INSTRUCTION, max_ratio=0.1)  # warm
    critic.seconds, critic.padded, critic.lengths = 0.0, 0, []
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        context = engine.compress(text, QUERY, instruction=INSTRUCTION, max_ratio=0.1)
    except Exception as error:  # noqa: BLE001 - running out of memory is a result
        print(f"{name:<22} {type(error).__name__}: {str(error).splitlines()[0][:100]}", flush=True)
        return
    whole = time.perf_counter() - began
    needed = sum(operations(critic.models[0].config, length) for length in critic.lengths)
    padding = 1 - sum(critic.lengths) / critic.padded
    print(
        f"{name:<22} {context.stats.original_tokens:>9,} tokens in {len(critic.lengths)} windows  "
        f"{whole:8.2f} s to the context  {context.stats.original_tokens / whole:>10,.0f} tokens/s  "
        f"model {critic.seconds:8.2f} s  utilization {needed / critic.seconds / speed:6.1%}  padding {padding:.1%}  "
        f"peak {peak(device)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384])
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, help="of a batch; default: a window on a CPU, more on a GPU")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=["ours", "reference"])
    options = parser.parse_args()
    device = options.device
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    speed = product_speed(device, dtype)
    print(f"{device}, {dtype}, matrix product {speed / 1e12:.2f} TFLOP/s, {options.shape} shape", flush=True)
    for tokens, kind in itertools.product(options.tokens, options.kinds):
        text = (_SENTENCE * (tokens // len(_SENTENCE) + 1))[:tokens]
        sizes = {"window": options.window, "batch_tokens": options.batch_tokens}
        critic = KINDS[kind]([random_model(options.shape, device, dtype)], byte_tokenizer(), **sizes)
        report("reference's procedure" if kind == "reference" else kind, critic, text, device, speed)


if __name__ == "__main__":
    main()
