"""Instrumentation events of a compression. They carry counts alone: handlers write events down."""

from llama_index.core.instrumentation.events.base import BaseEvent


class CompressionStartEvent(BaseEvent):
    """Nodes are about to be compressed."""

    query: str
    nodes: int
    characters: int

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the event is serialized."""
        return "CompressionStartEvent"


class CompressionEndEvent(BaseEvent):
    """Nodes were compressed, or passed through for the reason given."""

    nodes: int
    characters: int
    reason: str | None = None

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the event is serialized."""
        return "CompressionEndEvent"
