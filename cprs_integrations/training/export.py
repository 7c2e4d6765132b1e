"""Make the model folder that ships: `python -m cprs_integrations.training.export --checkpoint F --minilm DIR --out DIR`.

The network is written as ONNX and quantized: weights to int8, channel by channel; activations to uint8 at run time, with a
scale a call. Weights keep seven bits (`reduce_range`), so that CPUs without VNNI, whose 8-bit products saturate, compute
the same.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from cprs_integrations.lexical import Blend
from cprs_integrations.training.model import MiniModel

_FORMAT = 1
_OPSET = 18


class _Probabilities(nn.Module):
    def __init__(self, model: MiniModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return torch.softmax(self.model(ids), dim=-1)


def export(model: MiniModel, tokenizer: Path, out: Path, *, window: int = 256, longest: int = 512, margin: int = 24) -> None:
    """Write model.onnx, tokenizer.json and config.json, with their hashes, to the folder `out`; calibrate it then.

    Args:
        model: the trained critic.
        tokenizer: its tokenizer.json.
        out: the folder; files in it are replaced.
        window: tokens of a window, its prompt included.
        longest: tokens up to which a window grows for a long prompt.
        margin: tokens of context on either side.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        write_onnx(model, plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            prepared, out / "model.onnx", per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        )  # fmt: skip
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    files = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("model.onnx", "tokenizer.json")}
    sizes = {"window": window, "longest": longest, "margin": margin}
    uncalibrated = {"threshold": 0.5, "blends": {"read": asdict(Blend()), "unread": asdict(Blend(critic=0.0, shared=1.0))}}
    config = {"critic": "mini", "format": _FORMAT, **sizes, **uncalibrated, "files": files}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_onnx(model: MiniModel, path: Path) -> None:
    """Write the network in float32: `ids` int64 [1, tokens] to `bioe` float32 [1, tokens, 4]."""
    example = torch.randint(1000, 20_000, (1, 64))
    length = torch.export.Dim("length", min=8, max=512)
    program = torch.onnx.export(
        _Probabilities(model).eval(), (example,), input_names=["ids"], output_names=["bioe"], opset_version=_OPSET,
        dynamic_shapes={"ids": {1: length}}, dynamo=True, external_data=False,
    )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path))


def load(checkpoint: Path, minilm: Path, separator: int | None) -> MiniModel:
    """Read a trained critic from the checkpoint of a run."""
    model = MiniModel.from_minilm(minilm, separator)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict({**model.state_dict(), **state["model"]})
    return model.eval()


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of a run")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    options = parser.parse_args()
    from cprs_integrations.training.mini import load_tokenizer

    separator = load_tokenizer(options.minilm).token_to_id("[SEP]")
    model = load(options.checkpoint, options.minilm, separator)
    export(model, options.minilm / "tokenizer.json", options.out)


if __name__ == "__main__":
    main()
