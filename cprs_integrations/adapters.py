"""What all adapters share: their options, and the engine behind them.

Needs pydantic, which comes with either framework.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cprs_integrations.critics import load_critic
from cprs_integrations.engine import CPRSEngine, Engine
from cprs_integrations.errors import ArgumentError, CPRSError
from cprs_integrations.instructions import Granularity, check_question
from cprs_integrations.remote import TOKEN, RemoteEngine
from cprs_integrations.result import CompressedContext
from cprs_integrations.selection import Bounds

KEY = "cprs"
"""The one metadata key under which adapters write."""


class CPRSOptions(BaseModel):
    """The options of an adapter: plain JSON, but for engine objects and `token_counter`.

    All are checked at construction; a wrong one raises pydantic's `ValidationError`, which names it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True, protected_namespaces=())

    critic: str | None = Field(
        None, description='The critic: None for the one that ships, "reranker", a model folder, or a QwenLong-CPRS id.'
    )
    critic_options: dict[str, Any] = Field(default_factory=dict, description="Options of the critic, e.g. {'threads': 1}.")
    instruction: str | None = Field(
        None, description="What to keep, in natural language or by name; None: sentences that help to answer the query."
    )
    granularity: Granularity | None = Field(
        None, description='Units to snap to: "keyword", "sentence", "paragraph", "document"; None: as the critic marks it.'
    )
    threshold: float | None = Field(None, strict=True, description="Keep units whose score reaches it, in [0, 1].")
    max_ratio: float | None = Field(None, strict=True, description="Upper bound of kept to all characters, in (0, 1].")
    max_tokens: int | None = Field(None, strict=True, description="Upper bound of kept tokens over all documents.")
    protect: list[str] = Field(default_factory=list, description="Regular expressions whose matches are kept first.")
    prefilter: float | None = Field(
        None, strict=True, description="Share of windows to read, by the query's words, in (0, 1]; None: all."
    )
    on_error: Literal["raise", "passthrough"] = Field(
        "raise", description='"passthrough": if compression fails, return the originals with a warning.'
    )
    engine: Any = Field(
        None, description="A ready engine, or the URL of a served one (`cprs serve`), instead of `critic` and its options."
    )
    token_variable: str = Field(TOKEN, description="The environment variable with the token of a served engine.")
    token_counter: Callable[[str], int] | None = Field(None, description="Counts tokens for `max_tokens`.")

    @model_validator(mode="after")
    def _check(self) -> "CPRSOptions":
        Bounds(self.threshold, self.max_ratio, self.max_tokens, self.protect)
        if isinstance(self.engine, str):
            RemoteEngine(self.engine)
            if self.token_counter is not None:
                raise ArgumentError("token_counter cannot travel to a served engine: leave it out")
        elif self.engine is not None and not all(hasattr(self.engine, name) for name in ("compress", "acompress")):
            raise ArgumentError(f"engine must have compress and acompress, as CPRSEngine has; not {self.engine!r}")
        if self.engine is not None and (self.critic is not None or self.critic_options):
            raise ArgumentError("engine already has its critic: give either engine, or critic and critic_options")
        return self

    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        """Return the options as a dict.

        Raises:
            ArgumentError: there is an engine object or a token counter: they cannot be written down.
        """
        self._check_portable()
        return super().model_dump(**kwargs)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the options as a dict from which the adapter can be built again. Raises as `model_dump` does."""
        return self.model_dump(**kwargs)

    def model_dump_json(self, **kwargs: Any) -> str:
        """Return the options as JSON. Raises as `model_dump` does."""
        self._check_portable()
        return super().model_dump_json(**kwargs)

    def __getstate__(self) -> dict[Any, Any]:
        self._check_portable()
        return super().__getstate__()

    def _check_portable(self) -> None:
        for name in ("engine", "token_counter"):
            if not isinstance(getattr(self, name), str | None):
                raise ArgumentError(f"{name} is an object of this process and cannot be serialized; build it where it is used")

    def _engine(self) -> Engine:
        """The engine given, the client of the one at a URL, or one on the critic that this process shares."""
        if isinstance(self.engine, str):
            return RemoteEngine(self.engine, os.environ.get(self.token_variable))
        if self.engine is not None:
            engine: Engine = self.engine
            return engine
        return CPRSEngine(load_critic(self.critic, **self.critic_options))

    def _request(self, texts: Sequence[str], query: str | None) -> dict[str, Any]:
        """The arguments of the engine's call.

        Raises:
            ArgumentError: query and instruction are both empty.
        """
        check_question(query, self.instruction)
        return {
            "documents": list(texts),
            "query": query,
            "instruction": self.instruction,
            "granularity": self.granularity,
            "threshold": self.threshold,
            "max_ratio": self.max_ratio,
            "max_tokens": self.max_tokens,
            "token_counter": self.token_counter,
            "protect": self.protect,
            "prefilter": self.prefilter,
        }

    def _compressed(self, request: dict[str, Any]) -> CompressedContext | str:
        """Compress; or the reason for passing the originals through, if that is what the user chose."""
        try:
            return self._engine().compress(**request)
        except Exception as error:  # noqa: BLE001 - on_error decides
            return self._reason(error)

    async def _acompressed(self, request: dict[str, Any]) -> CompressedContext | str:
        try:
            return await self._engine().acompress(**request)
        except Exception as error:  # noqa: BLE001 - on_error decides
            return self._reason(error)

    def _reason(self, error: Exception) -> str:
        if self.on_error == "raise":
            if isinstance(error, CPRSError):
                raise error
            raise CPRSError(f"compression failed: {type(error).__name__}: {error}") from error
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"compression failed, the originals are passed through: {reason}", stacklevel=5)
        return reason


class RetrievalOptions(CPRSOptions):
    """The options of an adapter for what a retriever brought."""

    title_key: str | None = Field("title", description="Metadata key of a title that the critic reads as context.")
    drop_empty: bool = Field(True, description="Leave out documents that had text and lost all of it.")

    def _request_of(self, texts: Sequence[str], metadata: Sequence[dict[str, Any]], query: str | None) -> dict[str, Any]:
        """The arguments of the engine's call, titles included. Raises as `_request` does."""
        titles = [found.get(self.title_key) if self.title_key else None for found in metadata]
        return {
            **self._request(texts, query),
            "titles": [title if isinstance(title, str) else None for title in titles],
        }


def passed_through(reason: str, text: str) -> dict[str, Any]:
    """What stands under the metadata key of a document that is returned uncompressed."""
    return {"passthrough": True, "reason": reason, "original_chars": len(text), "kept_chars": len(text)}
