"""Instructions by name, in the plain words that a critic reads. Any other text is an instruction as it stands."""

from typing import Literal

from cprs_integrations.errors import ArgumentError

Granularity = Literal["keyword", "sentence", "paragraph", "document"]

DEFAULT = "sentences that help to answer the query"
"""What is asked of the critic when no instruction is given."""

INSTRUCTIONS = {
    "keywords": "Mark only the words or short phrases that answer the query: names, numbers, dates, terms.",
    "sentences": "Mark every whole sentence that helps to answer the query.",
    "paragraphs": "Mark every whole paragraph or section that deals with the query.",
    "needles": "Mark the sentences or lines that state the facts, values or keys which the query asks for.",
    "chains": "Mark every line of the chain of assignments that leads to the variables of the query.",
}
"""Named instructions: `instruction="keywords"` is short for the sentence behind that name."""


def resolve(instruction: str | None, granularity: str | None = None) -> str:
    """Return the text of a named instruction, or any other text unchanged.

    None or blanks: the default; or, where words are wanted, the instruction for keywords, since a critic that marks
    sentences has none to offer.
    """
    if instruction is None or not instruction.strip():
        return INSTRUCTIONS["keywords"] if granularity == "keyword" else DEFAULT
    return INSTRUCTIONS.get(instruction, instruction)


def check_question(query: object, instruction: object) -> None:
    """Check that there is something to ask.

    Raises:
        ArgumentError: query or instruction is no text, or both are empty.
    """
    for name, text in (("query", query), ("instruction", instruction)):
        if not isinstance(text, str | None):
            raise ArgumentError(f"{name} must be a str or None, not {type(text).__name__}")
    if not any(isinstance(text, str) and text.strip() for text in (query, instruction)):
        raise ArgumentError("query and instruction are both empty: give a question, or say what to keep, or both")
