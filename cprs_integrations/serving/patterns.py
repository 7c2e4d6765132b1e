r"""Regular expressions of strangers, in linear time: Python's parser reads them, RE2 runs them, the matches are Python's.

RE2 knows other characters than Python (its `\d`, `\w` and `\b` are ASCII, it folds case in its own way). So a pattern is
never handed to it as it stands. Each set of characters in a pattern (a letter, a class, a dot) is asked of Python's `re`;
characters of a text that no set of the pattern tells apart become one and the same byte, a byte a character; and RE2 runs the
pattern over these bytes. What RE2 cannot do at all is refused.

Linear is not yet short: RE2 writes repeats out, builds its program in one go that nothing can interrupt, and may take a step a
character for each part of it. So the size of patterns is bounded before anything is built, texts are searched in stretches
that end in time, and all that a request's patterns compute is charged to its allowance.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import re2

from cprs_integrations.errors import ArgumentError

MAX_LENGTH = 1_000
"""Characters of all patterns of a request together."""
MAX_MATCHES = 10_000
"""Protected places of a request."""
MAX_SIZE = 2_000
"""Parts of all patterns of a request together, repeats written out: RE2's time to build them grows with its square."""
SECONDS = 5.0
"""Seconds of a processor that the patterns of a request may take, whatever for."""

_MEMORY = 4 * 2**20  # bytes that RE2 may use for a pattern
_PART = 4_096  # characters that are encoded at once
_PROGRAM = 20_000  # instructions of a program: RE2 builds as many in some 20 ms
_STEPS = 250_000_000  # instructions times characters of one search: at its slowest, RE2 takes one or two seconds for them
_WORDS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_OTHERS = bytes(byte for byte in range(256) if byte not in _WORDS and byte != 0x0A)
_TOLD_APART = re.compile(r"\w"), re.compile(r"\n")  # by RE2 itself, whatever the pattern
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
        self.size, self.matches, self.seconds = MAX_SIZE, MAX_MATCHES, SECONDS

    def spend(self, *, size: int = 0, matches: int = 0) -> None:
        """Note what a pattern takes.

        Raises:
            ArgumentError: too much.
        """
        self.size -= size
        self.matches -= matches
        if self.size < 0:
            raise ArgumentError(
                f"protect: with their repeats written out, the patterns have {MAX_SIZE - self.size:,} parts or more; at most "
                f"{MAX_SIZE:,} are allowed here: repeat less (CPRS_PYTHON_PATTERNS lifts this on a server for trusted clients)"
            )
        if self.matches < 0:
            raise ArgumentError(f"protect: more than {MAX_MATCHES:,} matches; protect something rarer")

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note the time that this thread computes: a busy server does not shorten what a request may use.

        Raises:
            ArgumentError: too much.
        """
        began = time.thread_time()
        yield
        self.seconds -= time.thread_time() - began
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
        self._copies: Counter[int] = Counter()  # of each set, repeats written out
        self._size, self._times = 0, 1
        self._ends_line = self._ends_text = False
        try:
            with allowance.timed():
                tree = _parser.parse(pattern)
                least, self._width = tree.getwidth()
                if least == 0:
                    raise self._refused("it can match nothing: let it match one character at least")
                self._program = self._sequence(tree, tree.state.flags)
        except re.error as error:
            raise ArgumentError(f"protect: {pattern!r} is not a valid regular expression: {error}") from error
        except (RecursionError, OverflowError) as error:
            raise self._refused("it is nested too deeply") from error
        if self._ends_line and self._ends_text:
            raise self._refused("it has $ both with and without the flag m")
        allowance.spend(size=self._size)

    def finditer(self, text: str) -> Iterator[Place]:
        """Find what the pattern matches, as `re.finditer` does.

        Raises:
            ArgumentError: it is too large for RE2 or for this text, tells too many characters apart, or has used up its
                allowance.
        """
        encoded, members = self._encoded(text)
        with self._allowance.timed():
            program = self._compiled(members)
            most = max(2, _STEPS // max(1, program.programsize))
            consumed = _class(b"".join(members), is_negated=True)
        position = border = end = 0
        while position < len(encoded):
            with self._allowance.timed():
                if position >= border:
                    border, end = self._stretch(encoded, position, most, consumed)
                match = program.search(encoded, position, end)
            if match is None or match.start() >= border:
                position = border
                continue
            self._allowance.spend(matches=1)
            yield Place(match.start(), match.end())
            position = match.end()

    def _stretch(self, encoded: bytes, position: int, most: int, outside: bytes) -> tuple[int, int]:
        """How far matches may start that are searched for at once, and an end that none of these goes beyond.

        No search can be interrupted, so that none may be longer than `most`; and one over a text cut short finds what Python
        finds only if no match can go on behind the cut.
        """
        if len(encoded) - position <= most:
            return len(encoded), len(encoded)
        border = position + most // 2
        if self._width <= self._size:  # each character of a match takes a part: what is wider has no bound
            return border, min(border + self._width, len(encoded))
        gap = re2.compile(outside, _options()).search(encoded, border, position + most)
        if gap is None:
            raise self._refused(
                "it is too large for documents as long as these, as its matches may have any length: limit its repeats, "
                "as in .{0,200}, or split it into several patterns"
            )
        return gap.start(), gap.start()

    def _encoded(self, text: str) -> tuple[bytes, list[bytes]]:
        """A byte for each character, the same one for those that no set tells apart; and the bytes that are in each set."""
        words, others = iter(_WORDS), iter(_OTHERS)
        byte_of: dict[int, int] = {}
        table: dict[int, int] = {}
        members: list[list[int]] = [[] for _ in self._sets]
        encoded = []
        # piece by piece: no other thread runs while a piece is worked on, and probes are to be answered
        for start in range(0, len(text), _PART):
            with self._allowance.timed():
                part = text[start : start + _PART]
                new = "".join(sorted(character for character in set(part) if ord(character) not in table))
                for character, kind in self._kinds(new).items():
                    if kind not in byte_of:
                        # `$` without m stands at the end, or before a line break there: only that one is one to RE2
                        is_break = character == "\n" and not self._ends_text
                        byte = 0x0A if is_break else next(words if kind & 1 else others, None)
                        if byte is None:
                            raise self._refused("it tells too many kinds of characters of these documents apart")
                        byte_of[kind] = byte
                        for number, found in enumerate(members, len(_TOLD_APART)):
                            found += [byte] * (kind >> number & 1)
                    table[ord(character)] = byte_of[kind]
                encoded.append(part.translate(table).encode("latin-1"))
        if self._ends_text and text.endswith("\n"):
            for found in members:
                found += [0x0A] * (table[0x0A] in found)
            encoded[-1] = encoded[-1][:-1] + b"\n"
        return b"".join(encoded), [bytes(found) for found in members]

    def _kinds(self, characters: str) -> dict[str, int]:
        """Of each character, the sets that it is in, as bits."""
        kinds = dict.fromkeys(characters, 0)
        for number, known in enumerate((*_TOLD_APART, *self._sets)):
            for character in known.findall(characters):
                kinds[character] |= 1 << number
        return kinds

    def _compiled(self, members: Sequence[bytes]) -> Any:
        size = self._size + sum(times * _ranges(members[number]) for number, times in self._copies.items())
        if size > _PROGRAM:
            raise self._refused("it repeats sets that tell too many kinds of characters of these documents apart: repeat less")
        sets = list(map(_class, members))
        program = b"".join(part if isinstance(part, bytes) else sets[part] for part in self._program)
        try:
            return re2.compile(program, _options())
        except re2.error as error:
            raise self._refused("RE2 finds it too large: repeat less") from error

    def _sequence(self, tree: Any, flags: int) -> list[bytes | int]:
        return [part for code, value in tree for part in self._part(code, value, flags)]

    def _part(self, code: Any, value: Any, flags: int) -> list[bytes | int]:
        """Translate one node of Python's parse tree: pieces of RE2's syntax, and numbers of sets."""
        if code in _REFUSED:
            raise self._refused(f"{_REFUSED[code]} cannot run in linear time")
        self._size += self._times
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
        outer, self._times = self._times, self._times * (max(least, 1) if most is codes.MAXREPEAT else most)
        repeated = self._sequence(inside, flags)
        self._times = outer
        return [b"(?:", *repeated, b")", count, b"?" * is_lazy]

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
        number = self._numbers[source, kept]
        self._copies[number] += self._times
        return number

    def _refused(self, reason: str) -> ArgumentError:
        return ArgumentError(f"protect: {self.pattern!r} is not run here: {reason}")


def linear(patterns: Sequence[str]) -> list[LinearPattern]:
    """Make the patterns of a request ready.

    Raises:
        ArgumentError: they are too long or too large, or one of them is refused.
    """
    length = sum(map(len, patterns))
    if length > MAX_LENGTH:
        raise ArgumentError(f"protect: {length:,} characters of patterns; at most {MAX_LENGTH:,} are allowed here")
    allowance = Allowance()
    return [LinearPattern(pattern, allowance) for pattern in patterns]


def _options() -> Any:
    options = re2.Options()
    options.encoding, options.log_errors, options.max_mem = re2.Options.Encoding.LATIN1, False, _MEMORY
    return options


def _class(members: bytes, *, is_negated: bool = False) -> bytes:
    """A set of bytes in RE2's syntax, or of all others."""
    if not members:
        return b"[\\x00-\\xff]" if is_negated else b"[^\\x00-\\xff]"
    return b"[%s%s]" % (b"^" * is_negated, b"".join(b"\\x%02x" % byte for byte in members))


def _ranges(members: bytes) -> int:
    """How many instructions of RE2 a set takes."""
    return sum(byte - 1 not in members for byte in members if byte) + (0 in members)


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
