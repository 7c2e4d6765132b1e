"""How the released QwenLong-CPRS server cuts a document into windows, its defects included: only to compare with it."""

import re
from typing import NamedTuple

_SENTENCE_END = re.compile("。”|！”|？”|[.\n”。！？|]")
_GLUE = re.compile("[\n ]*")
_CHINESE = re.compile("[\u4e00-\u9fff]")


class ReferenceWindow(NamedTuple):
    text: str
    offsets: list[tuple[int, int]]


class ReferenceError(Exception):
    """The server would answer with an error."""


def header(prompt, query):
    return f"<|im_start|>system\n{prompt}<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>context\n"


def has_chinese(text):
    return _CHINESE.search(text) is not None


def tokens(tokenizer, text):
    found = tokenizer.encode(text, add_special_tokens=False)
    return found.ids, found.offsets


def cut(tokenizer, query_length, context, by_sentence, max_len):
    """The windows of a document; `query_length` is the length of the header in tokens."""
    room = max_len - query_length
    return list((_by_sentence if by_sentence and has_chinese(context) else _by_tokens)(tokenizer, context, room))


def _by_tokens(tokenizer, context, room):
    ids, offsets = tokens(tokenizer, context)
    for low in range(0, len(ids), room):
        high = low + room
        yield ReferenceWindow(tokenizer.decode(ids[low:high], skip_special_tokens=False), offsets[low:high])


def _sentences(text):
    position = 0
    while position < len(text):
        match = _SENTENCE_END.search(text, position)
        end = len(text)
        if match and match.start() < len(text) - 1:
            end = _GLUE.match(text, match.end()).end()
        yield text[position:end]
        position = end


def _by_sentence(tokenizer, context, room):
    base = length = 0
    held = ""
    for sentence in _sentences(context):
        count = len(tokens(tokenizer, sentence)[0])
        if length + count <= room:
            held, length = held + sentence, length + count
            continue
        window, text = _flushed(tokenizer, held, base, room)
        yield window
        base += len(text)
        held, length = sentence, count
    if held:
        yield ReferenceWindow(held, _moved(tokens(tokenizer, held)[1], base))


def _flushed(tokenizer, text, base, room):
    ids, offsets = tokens(tokenizer, text)
    if len(ids) > room:
        text = tokenizer.decode(ids[:room], skip_special_tokens=False)
    return ReferenceWindow(text, _moved(offsets, base)), text


def _moved(offsets, base):
    return [(start + base, end + base) for start, end in offsets]


def joined(windows, tags_of_windows):
    """Tags and offsets of a document, from the tags of its windows: short ones padded with O, long ones an error."""
    tags, offsets = "", []
    for window, found in zip(windows, tags_of_windows, strict=True):
        if len(found) > len(window.offsets):
            raise ReferenceError(f"{len(found)} tags for {len(window.offsets)} tokens")
        tags += found.ljust(len(window.offsets), "O")
        offsets += window.offsets
    return tags, offsets
