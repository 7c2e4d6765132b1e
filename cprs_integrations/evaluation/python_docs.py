"""Sixteen questions about a book that is on every machine with Python: CPython's language reference.

They were written by hand before anything was measured on them, and trained nothing. A model that learned from the web knows
some of the answers by heart: ask it without a context, too.
"""

import re
from dataclasses import dataclass
from pydoc_data.topics import topics

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.items import Item


@dataclass(frozen=True)
class Question:
    """A question, the topic that answers it, the words there that do, and what must be said."""

    text: str
    topic: str
    evidence: str
    answer: str


QUESTIONS = tuple(
    Question(*row)
    for row in (
        (
            "With which encoding is the file .pdbrc read?",
            "debugger",
            """it is read with "'utf-8'" encoding""",
            "utf-8",
        ),
        (
            "Which exception is raised if the name that is deleted is unbound?",
            "del",
            'If the name is unbound, a "NameError" exception will be raised.',
            "NameError",
        ),
        (
            "Which PEP has the specification of the nonlocal statement?",
            "nonlocal",
            "**PEP 3104** - Access to Names in Outer Scopes",
            "3104",
        ),
        (
            "What is the real part of the complex number that an imaginary literal yields?",
            "imaginary",
            "An imaginary literal yields a complex number with a real part of 0.0.",
            "0.0",
        ),
        (
            "In which version of Python were underscores allowed for grouping digits in integer literals?",
            "integers",
            "Changed in version 3.6: Underscores are now allowed for grouping purposes in literals.",
            "3.6",
        ),
        (
            "As which attribute is the second exception of a raise statement's from clause attached?",
            "raise",
            'it will be attached to the raised exception as the "__cause__" attribute',
            "__cause__",
        ),
        (
            "On which Unicode standard annex is the syntax of identifiers based?",
            "identifiers",
            "The syntax of identifiers in Python is based on the Unicode standard annex UAX-31",
            "UAX-31",
        ),
        (
            "Which exception does raising 0.0 to a negative power result in?",
            "power",
            'Raising "0.0" to a negative power results in a "ZeroDivisionError".',
            "ZeroDivisionError",
        ),
        (
            "What kind of number results from raising a negative number to a fractional power?",
            "power",
            'Raising a negative number to a fractional power results in a "complex" number.',
            "complex",
        ),
        (
            "What is Python's model of error handling called?",
            "exceptions",
            "Python uses the “termination” model of error handling",
            "termination",
        ),
        (
            "Which modules does the extension interface of the debugger use?",
            "debugger",
            'The extension interface uses the modules "bdb" and "cmd".',
            "bdb",
        ),
        (
            "What is the only standard mapping type?",
            "typesmapping",
            "There is currently only one standard mapping type, the *dictionary*.",
            "dictionary",
        ),
        (
            "In which version of Python did await and async become keywords?",
            "async",
            'Changed in version 3.7: "await" and "async" are now keywords',
            "3.7",
        ),
        (
            "Which error is it to use yield from in the body of a coroutine function?",
            "async",
            'It is a "SyntaxError" to use a "yield from" expression inside the body of a coroutine function.',
            "SyntaxError",
        ),
        (
            "By what are replacement fields of format strings surrounded?",
            "formatstrings",
            "“replacement fields” surrounded by curly braces",
            "curly braces",
        ),
        (
            "For which unhandled exception does the interpreter print no stack traceback?",
            "exceptions",
            'it prints a stack traceback, except when the exception is "SystemExit".',
            "SystemExit",
        ),
    )
)


def python_docs() -> dict[str, str]:
    """The topics of the language reference, of the Python that runs, by their names."""
    return dict(topics)


def ask(question: Question) -> Item:
    """The item of a question: it is asked of the whole book, whose topics are its documents.

    Raises:
        ArgumentError: the answer does not stand in the topics of the Python that runs.
    """
    names = list(topics)
    document = names.index(question.topic)
    words = r"\s+".join(map(re.escape, question.evidence.split()))
    found = re.search(words, topics[question.topic])
    if found is None:
        raise ArgumentError(f"question: this Python's reference does not say {question.evidence!r}; leave it out")
    evidence = ((document, *found.span()),)
    return Item(question.text, tuple(topics.values()), (question.answer,), evidence, tuple(names))
