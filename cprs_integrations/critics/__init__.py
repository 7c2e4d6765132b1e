"""Critics: each answers one question, how relevant every token of a window is to its instruction and query."""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from cprs_integrations.critics.base import Critic, Tokens, TokenScores
from cprs_integrations.errors import ArgumentError, ModelError

__all__ = ["Critic", "TokenScores", "Tokens", "load_critic"]

_loaded: dict[tuple[object, ...], Critic] = {}
_lock = threading.RLock()


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    _loaded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def load_critic(model: str | None = None, *, device: str | None = None, dtype: str | None = None, **options: Any) -> Critic:
    """Load a critic, or return the one that this process has loaded with the same arguments.

    Args:
        model: None or "mini" for the critic that ships with the package; "reranker" for a sentence-transformers model,
            whose folder is the option `model_path`; "ray" for replicas on a Ray cluster, whose critic is the option
            `critic`; the folder of a critic trained with this package, or of a QwenLong-CPRS checkpoint; or the id of such
            a checkpoint on the hub, "owner/name".
        device: where it computes; None lets the critic choose.
        dtype: in which precision it computes; None lets the critic choose.
        **options: the other arguments of the critic's `from_pretrained`; plain values, as JSON has them, or objects with
            a `to_dict` such as transformers' quantization configs.

    Raises:
        ModelError: files are missing, damaged or foreign.
        ArgumentError: the critic has no such option.
        MissingExtraError: the critic needs a package that is not installed.
    """
    if not isinstance(model, str | os.PathLike | None):
        raise ArgumentError(f"model must be None, a name or a folder, not {model!r}")
    if device is not None:
        options["device"] = device
    if dtype is not None:
        options["dtype"] = dtype
    try:
        key = (str(model), _stamp(model), tuple(sorted((name, _frozen(value)) for name, value in options.items())))
        hash(key)
    except TypeError as error:
        raise ArgumentError(f"options of a critic must be plain values: {options!r}") from error
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(model, options)
        return _loaded[key]


def _stamp(model: str | None) -> tuple[object, ...]:
    """What changes when the files of a folder change."""
    config = Path(model) / "config.json" if model is not None else None
    if config is None or not config.is_file():
        return ()
    return (str(config.resolve()), config.stat().st_mtime_ns, config.stat().st_size)


def _frozen(value: object) -> object:
    """What tells values apart: of lists and dicts, and of objects such as a `BitsAndBytesConfig`, their JSON."""
    if callable(to_dict := getattr(value, "to_dict", None)):
        return type(value).__name__, json.dumps(to_dict(), sort_keys=True, default=str)
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _is_qwenlong(model: str) -> bool:
    """Whether it is the folder of a QwenLong-CPRS checkpoint, or no path at all but the id of a model on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)) is not None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # named by the critic that reads it
        return False
    return isinstance(config, dict) and config.get("model_type") in ("qwen2", "qwenlong_cprs")


def _load(model: str | None, options: dict[str, Any]) -> Critic:
    try:
        if model == "reranker":
            from cprs_integrations.critics.rerankers import RerankerCritic

            return RerankerCritic.from_pretrained(**options)
        if model == "ray":
            from cprs_integrations.critics.ray import RayCritic

            return RayCritic.from_pretrained(**options)
        if model is not None and _is_qwenlong(model):
            from cprs_integrations.critics.qwenlong import QwenLongCritic

            return QwenLongCritic.from_pretrained(model, **options)
        from cprs_integrations.critics.mini import MiniCritic

        if model is None or model == "mini":
            return MiniCritic.from_pretrained(**options)
        if not Path(model).is_dir():
            raise ModelError(f"no folder {str(model)!r}; give the folder of a critic, or None for the one that ships here")
        return MiniCritic.from_pretrained(model, **options)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ArgumentError(f"critic {model or 'mini'!r} does not take these options ({given}): {error}") from error
