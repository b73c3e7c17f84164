"""The text of corpora/tiny.txt: small stories, sums and functions, to try things out on without any download.

    python -m corpora.tiny_text > corpora/tiny.txt

It is put together by rule from the lists below, always the same, and dedicated to the public domain.
"""

import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b

PARTS = 240

NAMES = (
    "Ada",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Leo",
    "Mina",
    "Noor",
)
ANIMALS = ("cat", "dog", "hen", "goat", "horse", "sparrow", "turtle", "hedgehog", "rabbit", "donkey")
PLACES = ("harbour", "old mill", "market", "forest", "station", "garden", "bridge", "library", "hill", "bakery")
WEATHERS = (
    "It rained all day.",
    "The sun was out.",
    "A cold wind blew.",
    "Fog lay over the fields.",
    "It snowed a little.",
)
THINGS = (
    "a lamp",
    "a basket",
    "a map",
    "a blue coat",
    "a ladder",
    "a letter",
    "a loaf of bread",
    "a small key",
    "a radio",
)
DEEDS = ("found", "bought", "lost", "carried", "drew", "hid", "mended", "borrowed", "painted", "forgot")
FEELINGS = ("glad", "tired", "curious", "proud", "hungry", "surprised", "calm", "in a hurry")
ENDINGS = (
    "Then everybody went home.",
    "Nobody knew what to say.",
    "They laughed about it for a long time.",
    "The next morning it was gone.",
    "And that was the end of it.",
)
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*"}

Choose = Callable[[Sequence[str]], str]


def text() -> str:
    """The whole text; paragraphs are separated by an empty line."""
    kinds = (_story, _talk, _sums, _function, _listing)
    return "\n\n".join(kinds[number % len(kinds)](_chooser(number)) for number in range(PARTS)) + "\n"


def _chooser(number: int) -> Choose:
    """A source of choices that gives the same ones on every machine and in every version of Python."""
    turn = 0

    def choose(options: Sequence[str]) -> str:
        nonlocal turn
        turn += 1
        digest = blake2b(f"{number} {turn}".encode(), digest_size=8).digest()
        return options[int.from_bytes(digest, "big") % len(options)]

    return choose


def _story(choose: Choose) -> str:
    name, animal, place, thing = choose(NAMES), choose(ANIMALS), choose(PLACES), choose(THINGS)
    friend = choose([other for other in NAMES if other != name])
    return (
        f"{choose(WEATHERS)} {name} went to the {place} with {thing}. On the way there was a {animal}. "
        f'"Whose {animal} is this?" asked {name}. {friend} did not know, and the {animal} did not say. '
        f"{friend} {choose(DEEDS)} {choose(THINGS)} and was {choose(FEELINGS)}. {choose(ENDINGS)}"
    )


def _talk(choose: Choose) -> str:
    name = choose(NAMES)
    friend = choose([other for other in NAMES if other != name])
    place, thing = choose(PLACES), choose(THINGS)
    return (
        f"{name}: Have you been to the {place}?\n"
        f"{friend}: Yes. I {choose(DEEDS)} {thing} there.\n"
        f"{name}: Were you {choose(FEELINGS)}?\n"
        f"{friend}: No, I was {choose(FEELINGS)}. {choose(WEATHERS)}"
    )


def _sums(choose: Choose) -> str:
    lines = []
    for _ in range(4):
        left, right = (NUMBERS.index(choose(NUMBERS[1:10])) for _ in range(2))
        lines.append(
            f"{left} + {right} = {left + right}; {NUMBERS[left]} plus {NUMBERS[right]} is {NUMBERS[left + right]}."
        )
    return "\n".join(lines)


def _function(choose: Choose) -> str:
    verb, thing = choose(list(SYMBOLS)), choose(ANIMALS)
    left, right = f"{thing}s", choose(["more", "others", "guests", "strays"])
    values = [NUMBERS.index(choose(NUMBERS[2:9])) for _ in range(2)]
    outcome = {"add": values[0] + values[1], "subtract": values[0] - values[1], "multiply": values[0] * values[1]}[verb]
    return (
        f"def {verb}_{left}({left}: int, {right}: int) -> int:\n"
        f'    """{verb.capitalize()} {left} and {right}.\n\n'
        f"    >>> {verb}_{left}({values[0]}, {values[1]})\n    {outcome}\n"
        f'    """\n'
        f"    return {left} {SYMBOLS[verb]} {right}"
    )


def _listing(choose: Choose) -> str:
    place = choose(PLACES)
    items = sorted({choose(THINGS) for _ in range(5)})
    return f"At the {place} you can get:\n" + "\n".join(f"- {item}" for item in items)


if __name__ == "__main__":
    sys.stdout.write(text())
