"""Segmentation: a text becomes units, the smallest pieces that are kept or dropped whole.

A unit is a sentence of prose, a line of whatever is written in lines (code, lists, logs, table rows), or a record of JSON that
is written without line breaks. Lines and paragraphs are found here; inside prose, `sentencex` finds the sentences of
some 300 languages.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sentencex import get_sentence_boundaries

MAX_UNIT = 2_000
"""Characters after which a unit is cut, at a clause if it has one, else at a space, else where it stands."""

_BLOCK = 32_768  # characters that sentencex sees at once: it holds the GIL while it works
_BLOCK_LINES = 500
_DENSE, _DENSE_BLOCK = 1_000, 4_000  # characters without white space, and how many of such text it sees at once

_LINE = re.compile(rf"[^\n\r\v\f\x85\u2028\u2029]{{1,{_BLOCK}}}")
_BREAK = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_BULLET = re.compile(r"\s*(?:[-*+•‣◦▪–—>|#]+|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_NUMBERING = re.compile(r"\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\s*")
_SYMBOL = re.compile(r"[^\w\s.,;:'\"’“”!?()-]|[\d_]")
_NO_SYMBOLS = bytes(c for c in range(128) if not _SYMBOL.match(chr(c)))
_INITIAL = re.compile(r"([A-Z]\s*)[^\S\x00-\x7f](?=\.)")  # sentencex panics at a white space of several bytes here
_DIGIT = re.compile(r"(?<=\D[。！？])\d")  # sentencex ends no sentence before one, which is where a date begins in Chinese

# how a long sentence is looked at again: without the marks in which sentencex ends none, but for short asides, which stay whole
_ASIDE = r"""[(\[][^()\[\]]{0,100}[)\]]|(?<![^\s(\[])(?:"(?=\S)[^"]{0,100}(?<=\S)"(?!\w)|“[^“”]{0,100}”)|「[^「」]{0,100}」"""
_ENCLOSING = r"""["“”„«»()\[\]{}「」『』（）]|(?<!\w)['‘’]|['’](?!\w)"""  # an apostrophe inside a word is none
_NOTES = r"(?<=[^\W\d_][.!?])\d{1,3}(?:(?:\s?[,–-]\s?|\s)\d{1,3})*(?=\s)"  # numbers of footnotes, right after a sentence
_HIDDEN = re.compile(f"(?P<aside>{_ASIDE})|{_ENCLOSING}|{_NOTES}")
_CLOSING = re.compile(  # what belongs to the sentence that has ended before it
    rf"""(?:
        \s?[”»)\]}}] | [’」』）]  # marks that only close
        | [*_]*(?:["'“«‘]|\s")(?=["'’”»)\]}}*_\s]|$)  # marks that also open (“ and « close in German), if nothing follows
        | [*_]+(?=\s)  # emphasis
        | \[[\w\s,–-]{{1,12}}\] | {_NOTES}  # [18], [note 2], 12
    )*\s*""",
    re.VERBOSE,
)
_GOES_ON = ".,;:!?%…)]}»”’」』）"  # no sentence begins with these
_MARKS = "-–—\"'“‘«(*_ "  # before the letter that tells: "Go!" he said.

_COLUMNS = re.compile(r"\S(?:\t| {3,})\S")
_CLAUSE = re.compile(r"(?:[,;:—–)](?=\s)|[，；、：。！？；،؛।])\s*")
_SPACE = re.compile(r"\s+")
_JSON = re.compile(r"""(?s:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)|[{}\[\]]|,\s*(?=["'{\[])""")  # strings go on to the end
_MEMBER = re.compile(r"""["'}\]\w]\s*,\s*(?=(["'])(?:(?!\1)[^\\]|\\.){1,200}\1\s*:)""")

_LONG_SENTENCE = 400  # characters of a sentence that is cut inside its quotations and brackets
_LONG_LINE = 240  # characters of a line that must be a paragraph of its own
_LONG_RECORD = 480  # characters of a record of JSON that is cut into its members, and of a member that is cut into its own
_LONG_MEMBER = 200  # characters of a member, on average; with longer ones it is rather text with some quotes
_DEPTHS = 8  # of records in records that are cut
_WRAP_AT = 0.75  # a wrapped line reaches this share of its block's width, counting the next line's first word


class Unit(NamedTuple):
    """A unit's place in its text, white space around it trimmed, and the number of its paragraph."""

    start: int
    end: int
    paragraph: int


class _Line(NamedTuple):
    start: int
    end: int
    blank_before: bool
    continues: bool  # the next line follows without a line break


def segment(text: str) -> Iterator[Unit]:
    """Yield the units of `text` in order: disjoint, non-empty, and together all that is not white space.

    Lazy, and linear in the length of the text. Lone surrogates must have been replaced (`LongContext` does).
    """
    paragraph = 0
    for block in _blocks(text):
        if block[0].blank_before:
            paragraph += 1
        long_before = False
        for start, end in _runs(text, block):
            is_long = end - start > _LONG_LINE
            if is_long or long_before:
                paragraph += 1
            long_before = is_long
            for unit_start, unit_end in _sentences(text, start, end):
                yield Unit(unit_start, unit_end, paragraph)


def clauses(text: str) -> list[int]:
    """Return the offsets in `text` at which a clause begins, the first one (0) included."""
    return [0, *(match.end() for match in _CLAUSE.finditer(text) if match.end() < len(text))]


def _lines(text: str) -> Iterator[_Line]:
    """Lines that are not blank; a line longer than a block comes in several, cut at a space."""
    end = position = 0
    blank = True
    while match := _LINE.search(text, position):
        start, position = match.span()
        continues = position - start == _BLOCK and position < len(text) and not _BREAK.match(text, position)
        if continues:
            space = max(text.rfind(" ", start + 1, position), text.rfind("。", start + 1, position))
            member = max((match.end() for match in _MEMBER.finditer(text, position - MAX_UNIT, position)), default=0)
            position = member or (space + 1 if space > 0 else position)
        if text[start:position].isspace():
            blank = blank or not continues
            continue
        breaks = len(_BREAK.findall(text, end, start)) if start - end < 9 else 2
        yield _Line(start, position, blank or breaks > 1, continues)
        end, blank = position, False


def _blocks(text: str) -> Iterator[list[_Line]]:
    """Lines with no blank line between them."""
    block: list[_Line] = []
    for line in _lines(text):
        if block and (line.blank_before or len(block) == _BLOCK_LINES):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _runs(text: str, block: list[_Line]) -> Iterator[tuple[int, int]]:
    """Lines of one block joined where a line break only wraps prose."""
    width = max(line.end - line.start for line in block)
    start, before, contents = block[0].start, block[0], text[block[0].start : block[0].end]
    for line in block[1:]:
        following = text[line.start : line.end]
        first = before.start == block[0].start
        if before.end - start > _BLOCK or not _wraps(contents, following, width, first):
            yield start, before.end
            start = line.start
        before, contents = line, following
    yield start, before.end


def _wraps(line: str, following: str, width: int, first: bool) -> bool:
    if width > _LONG_LINE or _BULLET.match(following):
        return False
    word = following.lstrip()
    indent, next_indent = len(line) - len(line.lstrip()), len(following) - len(word)
    if indent != next_indent and not first and not (_BULLET.match(line) and next_indent > indent):
        return False
    if len(line.rstrip()) + 1 + len(word.split(None, 1)[0]) < max(40, _WRAP_AT * width):
        return False
    return is_prose(line) and is_prose(following)


def is_prose(line: str) -> bool:
    """Whether a line reads like running text: no columns, few digits and symbols."""
    if ("\t" in line or "   " in line) and _COLUMNS.search(line):
        return False
    # every line of a context comes by here, and deleting bytes is ten times faster than matching characters
    symbols = len(line.encode("ascii").translate(None, _NO_SYMBOLS) if line.isascii() else _SYMBOL.findall(line))
    return symbols <= 0.15 * len(line)


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    run = text[start:end]
    cuts = _records(run, is_continued=start > 0 and not _BREAK.match(text, start - 1))
    cuts = cuts or _sentence_ends(run)
    begin = 0
    for cut in (*cuts, len(run)):
        if _NUMBERING.fullmatch(run, begin, cut) and cut < len(run):
            continue
        yield from _pieces(run, begin, cut, start)
        begin = max(begin, cut)


def _sentence_ends(run: str) -> list[int]:
    ends, begin = [], 0
    for end in (*_found_ends(run), len(run)):
        if end - begin > _LONG_SENTENCE:
            ends += [begin + inner for inner in _inner_ends(run[begin:end])]
        ends.append(end)
        begin = end
    return ends


def _inner_ends(sentence: str) -> Iterator[int]:
    """Where sentences end inside a quotation or brackets, or at a note, which sentencex does not see."""
    bare = _HIDDEN.sub(lambda match: match["aside"] or " " * len(match[0]), sentence)
    for found in _found_ends(bare):
        closing = _CLOSING.match(sentence, len(bare[:found].rstrip()))
        assert closing is not None
        rest = sentence[closing.end() : closing.end() + 4]
        if closing.end() and rest and rest[0] not in _GOES_ON and not rest.lstrip(_MARKS)[:1].islower():
            yield closing.end()


def _found_ends(run: str) -> list[int]:
    if not run.isascii():
        run = _DIGIT.sub("一", _INITIAL.sub(r"\1 ", run))
    # at each stop sentencex goes back to the white space before it: without any, as in Chinese, its time is quadratic
    block = _DENSE_BLOCK if max(map(len, run.split()), default=0) > _DENSE else len(run)
    ends: list[int] = []
    begin, size = 0, block
    while begin < len(run):
        found = [begin + boundary["end_index"] for boundary in get_sentence_boundaries("en", run[begin : begin + size])]
        if begin + size < len(run):  # what follows may close a quotation, in which no sentence ends
            found = [end for end in found if end <= begin + size - _DENSE]
        ends += found
        begin, size = (found[-1], block) if found else (begin, 2 * size)
    return ends


def _records(run: str, *, is_continued: bool) -> list[int]:
    """Where the records end of JSON in a line that is too long for a unit; nothing if it is something else."""
    if not is_continued and (len(run) <= MAX_UNIT or run.lstrip()[0] not in "{["):
        return []
    if _LONG_MEMBER * sum(1 for _ in _MEMBER.finditer(run)) < len(run):
        return []
    depth, borders = 0, []
    for match in _JSON.finditer(run):
        mark = run[match.start()]
        depth += (mark in "{[") - (mark in "}]")
        if mark == ",":
            borders.append((depth, match.end()))
    return list(_cut_records(0, len(run), borders, _DEPTHS))


def _cut_records(begin: int, end: int, borders: list[tuple[int, int]], depths: int) -> Iterator[int]:
    """Cut at the outermost borders (depth, place), and what is still long at those inside."""
    if end - begin <= _LONG_RECORD or not borders or not depths:
        yield end
        return
    outermost, inside = min(depth for depth, _ in borders), []
    for depth, place in (*borders, (outermost, end)):
        if depth > outermost:
            inside.append((depth, place))
            continue
        yield from _cut_records(begin, place, inside, depths - 1)
        begin, inside = place, []


def _pieces(run: str, begin: int, end: int, base: int) -> Iterator[tuple[int, int]]:
    """One sentence, trimmed; cut up if it is too long."""
    while end - begin > MAX_UNIT:
        window = run[begin : begin + MAX_UNIT]
        borders = [match.end() for match in _CLAUSE.finditer(window, MAX_UNIT // 2)]
        borders = borders or [match.end() for match in _SPACE.finditer(window, MAX_UNIT // 2)] or [MAX_UNIT]
        yield from _trimmed(window[: borders[-1]], base + begin)
        begin += borders[-1]
    yield from _trimmed(run[begin:end], base + begin)


def _trimmed(piece: str, base: int) -> Iterator[tuple[int, int]]:
    content = piece.strip()
    if content:
        start = base + len(piece) - len(piece.lstrip())
        yield start, start + len(content)
