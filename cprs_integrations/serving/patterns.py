r"""Regular expressions of strangers, in linear time: Python's parser reads them, RE2 runs them, the matches are Python's.

RE2 knows other characters than Python (its `\d`, `\w` and `\b` are ASCII, it folds case in its own way). So a pattern is
never handed to it as it stands. Each set of characters in a pattern (a letter, a class, a dot) is asked of Python's `re`;
characters of a text that no set of the pattern tells apart become one and the same byte, a byte a character; and RE2 runs the
pattern over these bytes. What RE2 cannot do at all is refused.
"""

import re
import time
from collections.abc import Iterator, Sequence
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import re2

from cprs_integrations.errors import ArgumentError

MAX_LENGTH = 1_000
"""Characters of all patterns of a request together."""
MAX_MATCHES = 10_000
"""Protected places of a request."""
SECONDS = 5.0
"""How long the patterns of a request may run: each search is linear, but there may be as many as there are matches."""

_MEMORY = 4 * 2**20  # bytes that RE2 may use for a pattern
_PART = 65_536  # characters that are encoded at once
_WORDS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_OTHERS = bytes(byte for byte in range(256) if byte not in _WORDS and byte != 0x0A)
_IS_WORD = re.compile(r"\w")
_REFUSED = {
    codes.ASSERT: "look-ahead and look-behind",
    codes.ASSERT_NOT: "look-ahead and look-behind",
    codes.GROUPREF: "back-references",
    codes.GROUPREF_EXISTS: "conditions on groups",
    codes.POSSESSIVE_REPEAT: "possessive repeats",
    codes.ATOMIC_GROUP: "atomic groups",
}
_AT = {
    codes.AT_BEGINNING_STRING: r"\A",
    codes.AT_END_STRING: r"\z",
    codes.AT_BOUNDARY: r"\b",
    codes.AT_NON_BOUNDARY: r"\B",
}
_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}


class Place(NamedTuple):
    """Where a match stands, in characters."""

    first: int
    last: int

    def start(self) -> int:
        """Where it starts."""
        return self.first

    def end(self) -> int:
        """Where it ends."""
        return self.last


class Allowance:
    """What all patterns of one request may use together."""

    def __init__(self) -> None:
        self.matches, self.seconds = MAX_MATCHES, SECONDS

    def spend(self, seconds: float, matches: int) -> None:
        """Note what a search took.

        Raises:
            ArgumentError: too much.
        """
        self.seconds -= seconds
        self.matches -= matches
        if self.matches < 0:
            raise ArgumentError(f"protect: more than {MAX_MATCHES:,} matches; protect something rarer")
        if self.seconds < 0:
            raise ArgumentError(f"protect: the patterns ran for {SECONDS:g} seconds; simplify them")


class LinearPattern:
    """A regular expression for `protect` whose time grows with the text alone; its matches are those of Python's `re`.

    Args:
        pattern: in Python's syntax.
        allowance: shared by the patterns of a request.

    Raises:
        ArgumentError: it is no regular expression, or one that cannot run in linear time; the message says why.
    """

    def __init__(self, pattern: str, allowance: Allowance) -> None:
        self.pattern, self._allowance = pattern, allowance
        self._sets: list[re.Pattern[str]] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self._ends_line = self._ends_text = False
        try:
            tree = _parser.parse(pattern)
            if tree.getwidth()[0] == 0:
                raise self._refused("it can match nothing: let it match one character at least")
            self._program = self._sequence(tree, tree.state.flags)
        except re.error as error:
            raise ArgumentError(f"protect: {pattern!r} is not a valid regular expression: {error}") from error
        except (RecursionError, OverflowError) as error:
            raise self._refused("it is nested too deeply") from error
        if self._ends_line and self._ends_text:
            raise self._refused("it has $ both with and without the flag m")

    def finditer(self, text: str) -> Iterator[Place]:
        """Find what the pattern matches, as `re.finditer` does.

        Raises:
            ArgumentError: it is too large for RE2, tells too many characters apart, or has used up its allowance.
        """
        encoded, members = self._encoded(text)
        program = self._compiled(members)
        position = 0
        while True:
            began = time.perf_counter()
            match = program.search(encoded, position)
            self._allowance.spend(time.perf_counter() - began, match is not None)
            if match is None:
                return
            yield Place(match.start(), match.end())
            position = match.end()

    def _encoded(self, text: str) -> tuple[bytes, list[bytes]]:
        """A byte for each character, the same one for those that no set tells apart; and the bytes that are in each set."""
        words, others = iter(_WORDS), iter(_OTHERS)
        byte_of: dict[tuple[bool, ...], int] = {}
        table: dict[int, int] = {}
        members: list[list[int]] = [[] for _ in self._sets]
        for character in sorted(set().union(*map(set, _parts(text)))):
            is_in = tuple(known.match(character) is not None for known in self._sets)
            is_word = _IS_WORD.match(character) is not None
            key = (is_word, character == "\n", *is_in)
            if key not in byte_of:
                # `$` without m stands at the end, or before a line break there: only that one is one to RE2
                is_break = character == "\n" and not self._ends_text
                byte = 0x0A if is_break else next(words if is_word else others, None)
                if byte is None:
                    raise self._refused("it tells too many kinds of characters of these documents apart")
                byte_of[key] = byte
                for number in (number for number, inside in enumerate(is_in) if inside):
                    members[number].append(byte)
            table[ord(character)] = byte_of[key]
        encoded = b"".join(part.translate(table).encode("latin-1") for part in _parts(text))
        if self._ends_text and text.endswith("\n"):
            for found in members:
                found += [0x0A] * (table[0x0A] in found)
            encoded = encoded[:-1] + b"\n"
        return encoded, [bytes(found) for found in members]

    def _compiled(self, members: Sequence[bytes]) -> Any:
        options = re2.Options()
        options.encoding, options.log_errors, options.max_mem = re2.Options.Encoding.LATIN1, False, _MEMORY
        sets = [
            b"[" + b"".join(b"\\x%02x" % byte for byte in found) + b"]" if found else b"[^\\x00-\\xff]" for found in members
        ]
        program = b"".join(part if isinstance(part, bytes) else sets[part] for part in self._program)
        try:
            return re2.compile(program, options)
        except re2.error as error:
            raise self._refused("RE2 finds it too large: repeat less") from error

    def _sequence(self, tree: Any, flags: int) -> list[bytes | int]:
        return [part for code, value in tree for part in self._part(code, value, flags)]

    def _part(self, code: Any, value: Any, flags: int) -> list[bytes | int]:
        """Translate one node of Python's parse tree: pieces of RE2's syntax, and numbers of sets."""
        if code in _REFUSED:
            raise self._refused(f"{_REFUSED[code]} cannot run in linear time")
        if code is codes.SUBPATTERN:
            _, added, removed, inside = value
            return [b"(?:", *self._sequence(inside, (flags | added) & ~removed), b")"]
        if code is codes.BRANCH:
            branches = [self._sequence(branch, flags) for branch in value[1]]
            first, *rest = branches
            return [b"(?:", *first, *(part for branch in rest for part in (b"|", *branch)), b")"]
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inside = value
            return self._repeat(least, most, inside, flags, is_lazy=code is codes.MIN_REPEAT)
        if code is codes.AT:
            return [self._anchor(value, flags)]
        return [self._set(_source(code, value), flags)]

    def _repeat(self, least: int, most: Any, inside: Any, flags: int, *, is_lazy: bool) -> list[bytes | int]:
        if inside.getwidth()[0] == 0 and most != 1:
            raise self._refused("what it repeats can match nothing")
        count = b"{%d,}" % least if most is codes.MAXREPEAT else b"{%d,%d}" % (least, most)
        return [b"(?:", *self._sequence(inside, flags), b")", count, b"?" * is_lazy]

    def _anchor(self, kind: Any, flags: int) -> bytes:
        if kind is codes.AT_BEGINNING:
            return b"(?m:^)" if flags & re.M else b"\\A"
        if kind is codes.AT_END:
            if flags & re.M:
                self._ends_line = True
            else:
                self._ends_text = True
            return b"(?m:$)"
        if kind in (codes.AT_BOUNDARY, codes.AT_NON_BOUNDARY) and flags & re.A:
            raise self._refused("\\b and \\B with the flag a")
        return str(_AT[kind]).encode()

    def _set(self, source: str, flags: int) -> int:
        kept = flags & (re.I | re.A | re.S)
        if (source, kept) not in self._numbers:
            self._numbers[source, kept] = len(self._sets)
            self._sets.append(re.compile(source, kept))
        return self._numbers[source, kept]

    def _refused(self, reason: str) -> ArgumentError:
        return ArgumentError(f"protect: {self.pattern!r} is not run here: {reason}")


def _parts(text: str) -> Iterator[str]:
    """A text piece by piece: no other thread runs while a piece is worked on, and probes are to be answered."""
    for start in range(0, len(text), _PART):
        yield text[start : start + _PART]


def linear(patterns: Sequence[str]) -> list[LinearPattern]:
    """Make the patterns of a request ready.

    Raises:
        ArgumentError: they are too long, or one of them is refused.
    """
    length = sum(map(len, patterns))
    if length > MAX_LENGTH:
        raise ArgumentError(f"protect: {length:,} characters of patterns; at most {MAX_LENGTH:,} are allowed here")
    allowance = Allowance()
    return [LinearPattern(pattern, allowance) for pattern in patterns]


def _source(code: Any, value: Any) -> str:
    """A set of characters, as Python writes it."""
    if code is codes.ANY:
        return "."
    if code is codes.LITERAL:
        return re.escape(chr(value))
    if code is codes.NOT_LITERAL:
        return f"[^{_escaped(value)}]"
    if code is not codes.IN:
        raise re.error(f"{code} is not known here")
    return f"[{''.join(_item(kind, item) for kind, item in value)}]"


def _item(kind: Any, item: Any) -> str:
    if kind is codes.NEGATE:
        return "^"
    if kind is codes.RANGE:
        return f"{_escaped(item[0])}-{_escaped(item[1])}"
    return _CATEGORIES[item] if kind is codes.CATEGORY else _escaped(item)


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"
