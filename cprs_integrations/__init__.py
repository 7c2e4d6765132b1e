"""Compress long contexts to the passages that answer a query, verbatim: for RAG chains, query engines and agents."""

from cprs_integrations.engine import CPRSEngine, Engine
from cprs_integrations.errors import CPRSError
from cprs_integrations.instructions import INSTRUCTIONS
from cprs_integrations.remote import RemoteEngine
from cprs_integrations.result import CompressedContext, CompressedDocument, Span, Stats
from cprs_integrations.scored import Scored

__all__ = [
    "INSTRUCTIONS",
    "CPRSEngine",
    "CPRSError",
    "CompressedContext",
    "CompressedDocument",
    "Engine",
    "RemoteEngine",
    "Scored",
    "Span",
    "Stats",
]
