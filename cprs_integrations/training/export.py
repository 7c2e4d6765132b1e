"""Make a model folder of a trained critic.

The network is written as ONNX and quantized: weights to int8, channel by channel; activations to uint8 at run time, with a
scale a call. Weights keep seven bits (`reduce_range`), so that CPUs without VNNI, whose 8-bit products saturate, compute
the same.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cprs_integrations.critics.mini import FORMAT
from cprs_integrations.errors import ArgumentError
from cprs_integrations.lexical import Blend
from cprs_integrations.training.model import MiniModel, Readings, kept_odds

_SIMILARITY = 2.0  # weight of the predicted cosine in a unit's log-odds; see EXPERIMENTS.md
_REACH = 0.05  # an answer cut short is none; see EXPERIMENTS.md
SECOND = 320
"""Tokens of the window of a second reading, as long as the longest that train it (`windows.WindowMaker`)."""
_OPSET = 20  # the first with Gelu as one operator


class Outputs(nn.Module):
    """What is exported: of token ids the tags of what is asked for, and what a unit is worth."""

    def __init__(self, model: MiniModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs for `ids` [1, tokens].

        Returns:
            `bioe` [1, tokens, 4], probabilities: of words the more, the more likely these are asked for; `kept` [1, tokens],
            log-odds of being in a sentence worth keeping; `words` [1, tokens], of being a word that answers; `similar`
            [1, tokens], cosines in fifths; `asked` [1, 3].
        """
        readings: Readings = self.model(ids)
        asked = torch.softmax(readings.asked, dim=-1)
        share = asked[:, None, :1]
        bioe = torch.softmax(share * readings.words + (1 - share) * readings.sentences, dim=-1)
        return bioe, kept_odds(readings.sentences), kept_odds(readings.words), readings.similar, asked


def export(
    model: MiniModel,
    tokenizer: Path,
    out: Path,
    *,
    is_quantized: bool = True,
    window: int = 256,
    longest: int = 512,
    margin: int = 24,
    second: int = SECOND,
) -> None:
    """Write model.onnx, tokenizer.json and config.json, with their hashes, to the folder `out`; calibrate it then.

    Args:
        model: the trained critic.
        tokenizer: its tokenizer.json.
        out: the folder; files in it are replaced.
        is_quantized: write int8; else float32, to see what is lost.
        window: tokens of a window, its prompt included.
        longest: tokens up to which a window grows for a long prompt.
        margin: tokens of context on either side.
        second: tokens of the window in which the best units are read once more; 0: they are not.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        write_onnx(model, plain)
        if is_quantized:
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_dynamic(
                prepared, out / "model.onnx", per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            )  # fmt: skip
        else:
            shutil.copyfile(plain, out / "model.onnx")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    files = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("model.onnx", "tokenizer.json")}
    sizes = {"window": window, "longest": longest, "margin": margin, "second": second}
    uncalibrated = {
        "threshold": 0.5,
        "blends": {"read": asdict(Blend()), "unread": asdict(Blend(critic=0.0, shared=1.0)), "bridge": 0.0, "reread": None},
    }
    config = {
        "critic": "mini",
        "format": FORMAT,
        **sizes,
        "similarity": _SIMILARITY,
        "reach": _REACH,
        **uncalibrated,
        "files": files,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_onnx(model: MiniModel, path: Path) -> None:
    """Write the network in float32: `ids` int64 [1, tokens] to the float32 of `Outputs`."""
    model.encoder.set_attn_implementation("eager")  # others leave masks and checks in the graph: a sixth slower
    example = torch.randint(1000, 20_000, (1, 64))
    length = torch.export.Dim("length", min=8, max=512)
    program = torch.onnx.export(
        Outputs(model).eval(), (example,), input_names=["ids"], output_names=["bioe", "kept", "words", "similar", "asked"],
        opset_version=_OPSET, dynamic_shapes={"ids": {1: length}}, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path))
    _forget_the_machine(path)


def _forget_the_machine(path: Path) -> None:
    """Take out the stack traces that torch writes into a graph: paths of files differ from machine to machine."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


def load(checkpoint: Path, minilm: Path, separator: int | None) -> MiniModel:
    """Read a trained critic: the checkpoint of a run, or one that `keep` wrote.

    Raises:
        ArgumentError: the file is neither.
    """
    model = MiniModel.from_minilm(minilm, separator)
    try:
        missing, unknown = model.load_state_dict(_weights(checkpoint), strict=False)
    except RuntimeError as error:
        raise ArgumentError(f"checkpoint: {checkpoint} cannot be read ({error})") from error
    if unknown or set(missing) - {_WORDS}:
        raise ArgumentError(f"checkpoint: {checkpoint} is of another model: {[*unknown, *missing]}")
    return model.eval()


def keep(checkpoints: Sequence[Path], minilm: Path, path: Path) -> None:
    """Write what is worth keeping: half precision, without the embeddings of words, which never change.

    Args:
        checkpoints: of runs, or such as this function wrote; of several the mean of their weights is kept, which has what
            each has learned if one began with the other's (model soups, arXiv 2203.05482).
        minilm: folder of all-MiniLM-L6-v2.
        path: file to write.

    Raises:
        ArgumentError: one cannot be read, is of another model, or was trained with other embeddings of words.
    """
    known = MiniModel.from_minilm(minilm, None).state_dict()
    embeddings = known.pop(_WORDS)
    wanted = {name: value.shape for name, value in known.items()}
    states = [_weights(checkpoint) for checkpoint in checkpoints]
    for checkpoint, state in zip(checkpoints, states, strict=True):
        if not torch.equal(state.pop(_WORDS, embeddings), embeddings):
            raise ArgumentError(f"checkpoint: {checkpoint} was trained with other embeddings of words than those in {minilm}")
        if wrong := {name for name, _ in {name: value.shape for name, value in state.items()}.items() ^ wanted.items()}:
            raise ArgumentError(f"checkpoint: {checkpoint} is of another model: {sorted(wrong)}")
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    save_file({name: value.half() for name, value in mean.items()}, path)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        if checkpoint.suffix == ".safetensors":
            state = load_file(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    except (OSError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ArgumentError(f"checkpoint: {checkpoint} cannot be read ({error})") from error
    return {name: value.float() for name, value in state.items()}


_WORDS = "encoder.embeddings.word_embeddings.weight"
