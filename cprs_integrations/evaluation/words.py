"""Keys and values to be hidden: words, numbers, uuids, none of them twice."""

import uuid
from collections.abc import Callable
from typing import Literal

import numpy as np

from cprs_integrations.errors import ArgumentError

Kind = Literal["word", "number", "uuid"]

_ADJECTIVES = """
able abrupt absent ample ancient angry arctic ashen awake bald barren bitter blank bleak blunt bold brave breezy brief
bright brisk broad broken busy calm careful chilly clever coarse cosy crisp crooked cruel curious damp dapper deaf deep
dense dim distant dizzy dreary drowsy dry dull dusty eager earnest elder empty even faint fancy feeble fierce final firm
flat fluffy foggy fond frail fresh frosty gaunt gentle giant glad gleaming gloomy grand greedy grim gritty hasty hazy
hidden hollow honest humble hungry husky icy idle jolly keen kind lanky lazy lean loyal lucky mellow merry mighty mild
misty modest muddy murky narrow neat noble odd pale plain polite proud quaint quick quiet rapid rare raw rigid ripe robust
rough round rusty shallow sharp shy silent silly sleek slim sly smooth sober soft solid sour spare stale steep stern stiff
stout strict sturdy subtle sunny swift tame tart tender thick thin tidy timid tiny tough vague vain vast vivid warm wary
weary wild wise witty worthy young zealous
""".split()
_NOUNS = """
acorn alley anvil apron arrow attic badge bagel banjo barge barn basin basket beaver bench blanket bonnet bottle bracket
branch brick bridge broom bucket buckle bugle button cabin candle cannon canoe canvas carpet castle cellar chimney chisel
cider cliff clock cloak closet cloud clover coach collar compass cottage cradle crayon cricket crown curtain cushion dagger
desert donkey drawer drum engine fabric feather fence ferry fiddle flask flute fountain funnel galley garage garden gate
gavel glove goblet gravel guitar hammer hammock hatchet helmet hinge jacket jigsaw kettle kitten ladder ladle lever lizard
locket magnet mantle marker mirror mitten monkey needle noodle oyster paddle palace parcel parrot pebble pencil pepper
piano pillar pillow pistol pitcher planet pocket puddle pulley pumpkin puppet quilt rabbit ribbon rocket saddle sandal
satchel saucer scarf shovel shutter sickle socket spider spoon stable statue stove tablet tailor teapot temple ticket
timber trumpet tunnel turnip turtle vessel violin wagon walrus whistle wicket window
""".split()
_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]


def draw(rng: np.random.Generator, kind: Kind, count: int, text: str = "") -> list[str]:
    """Draw distinct keys or values, none of which stands in a text.

    Args:
        rng: the source of chance.
        kind: "number", of seven digits; "uuid"; or "word", an adjective and a noun, and one more adjective where there are
            not enough pairs.
        count: how many.
        text: where none of them may stand.

    Raises:
        ArgumentError: there are not so many.
    """
    make: Callable[[], str]
    if kind == "word":
        parts = 1 if count < len(_ADJECTIVES) * len(_NOUNS) // 4 else 2
        make = lambda: "-".join([*(_pick(rng, _ADJECTIVES) for _ in range(parts)), _pick(rng, _NOUNS)])  # noqa: E731
    elif kind == "number":
        make = lambda: str(rng.integers(10**6, 10**7))  # noqa: E731
    else:
        make = lambda: str(uuid.UUID(bytes=rng.bytes(16), version=4))  # noqa: E731
    return distinct(make, count, text)


def distinct(make: Callable[[], str], count: int, text: str = "") -> list[str]:
    """Make strings until there are enough different ones that do not stand in a text.

    Raises:
        ArgumentError: there seem to be no more.
    """
    found: dict[str, None] = {}
    for _ in range(20 * count + 1_000):
        if len(found) == count:
            return list(found)
        made = make()
        if made not in text:
            found.setdefault(made)
    raise ArgumentError(f"lengths: only {len(found):,} of {count:,} different keys could be made; ask for a shorter context")


def letters(rng: np.random.Generator, count: int, first: str = "a") -> str:
    """Random letters, from `first` on."""
    return "".join(chr(ord(first) + int(code)) for code in rng.integers(26, size=count))


def invented(rng: np.random.Generator) -> str:
    """A word that can be spoken and means nothing."""
    return "".join(_pick(rng, _SYLLABLES) for _ in range(int(rng.integers(3, 5))))


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[int(rng.integers(len(words)))]
