"""Children's stories by templates, about characters whose names are new in each story.

    One sunny day Dobi went to the lake to look for a kite. There Dobi met Kafe. "A red kite!" said Kafe. ...

A story has an opening, some events and an end, and two or three characters; each sentence picks among them anew, so the
next name is open until it has begun.

Source of the kind: TinyStories, Eldan & Li 2023 (arXiv 2305.07759).

Try:  python -c "from experiments.induction.stories import *; print(*(s.text for s in stories(3, 0, True)), sep='\\n')"
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.induction.names import draw_names

WORDS = {
    "place": "park lake farm beach forest garden market school river barn hill castle playground kitchen mill bridge",
    "thing": "kite ball book drum boat bell key box lamp stone blanket cup wagon whistle puppet basket map coin hat",
    "animal": "dog cat frog duck rabbit pony mouse goat owl turtle fox hen bee squirrel bear snail",
    "food": "apple cake pear soup bread honey cheese cookie plum pie carrot rice",
    "adj": "red small shiny old funny soft blue strange pretty heavy brown noisy golden round green tiny",
    "mood": "happy sad tired proud scared angry curious hungry shy excited sleepy lonely",
    "weather": "sunny rainy windy cold warm cloudy snowy quiet",
    "did": "ran walked jumped hurried danced climbed went crept skipped wandered",
}
OPENINGS = (
    "One {weather} day {a} {did} to the {place} to look for a {thing}. There {a} met {b}.",
    "Once upon a time there was a {mood} child called {a}, who lived near the {place}. {b} lived there too.",
    "{a} and {b} were friends. Every {weather} morning they {did} to the {place}.",
    "It was a {weather} day. {a} was at the {place} with a {adj} {thing}, and {b} had a {animal}.",
    "Long ago a {adj} {animal} lived by the {place}. Its best friend was {a}, and it was afraid of {b}.",
    "In a {adj} house by the {place} lived {a}, {b} and a {animal}.",
    "{a} was very {mood}, because the {thing} was gone. Then {b} came with a {animal}.",
    "There was once a {adj} {thing} at the {place}. {a} wanted it, and so did {b}.",
)
EVENTS = (
    '"What a {adj} {thing}!" said {a}.',
    '"Can I play with the {thing}?" asked {a}. {b} said yes.',
    '"No," said {a}, "that is my {thing}." {b} was {mood}.',
    '"Look, {b}, a {adj} {animal}!" shouted {a}.',
    '"Please help me, {a}," said {b}.',
    '"I am {mood}," said {a}. "I am {mood} too," said {b}.',
    '"Where is the {animal}?" asked {a}.',
    '"Thank you, {a}!" said the {animal}.',
    "{a} gave the {thing} to {b}.",
    "{a} {did} to the {place}, and {b} {did} after.",
    "{a} found some {food} and shared it with {b}.",
    "Then {a} heard a {animal} and was {mood}.",
    "The {animal} took the {thing} away from {a}.",
    "The {animal} liked {a}, but it did not like {b}.",
    "{a} hid behind the {adj} {thing}.",
    "{a} asked the {animal} about {b}.",
    "All at once the {thing} broke. {a} was {mood}.",
    "Then it was {weather}, so {a} and {b} ate {food}.",
    "{a} showed {b} how the {thing} worked.",
    "A {adj} {animal} {did} past {a}.",
    "{a} tripped over the {thing}, but {b} was there to help.",
    "At the {place} {a} saw a {adj} {animal}.",
    "{a} wanted to be as {mood} as {b}.",
    "So {a} made a {adj} {thing} for {b}.",
)
ENDS = (
    "In the end {a} and {b} were {mood}.",
    "Then {a} went home and dreamed of the {adj} {thing}.",
    "From that day on {a} was never {mood} again.",
    '"Good night, {a}," said {b}.',
    "{a} hugged {b}, and they {did} home.",
    "And {a} learned to share {food} with {b}.",
    "{a} kept the {thing} for ever.",
    '"You are my best friend, {a}," said {b}.',
)
CHARACTERS, EVENT_COUNTS = (2, 3), (2, 3, 4)


@dataclass(frozen=True)
class Story:
    text: str
    names: tuple[str, ...]
    """of its characters"""


def stories(count: int, seed: int, heldout: bool) -> Iterator[Story]:
    """The same ones for the same seed.  heldout: with names that no other story has."""
    source = random.Random(seed)
    return (story(source, heldout) for _ in range(count))


def story(source: random.Random, heldout: bool) -> Story:
    names = draw_names(source, source.choice(CHARACTERS), heldout)
    kept = {kind: source.choice(WORDS[kind].split()) for kind in ("place", "thing", "animal")}
    events = source.sample(EVENTS, source.choice(EVENT_COUNTS))
    templates = [source.choice(OPENINGS), *events, source.choice(ENDS)]
    return Story(" ".join(filled(template, names, kept, source) for template in templates), names)


def filled(template: str, names: tuple[str, ...], kept: dict[str, str], source: random.Random) -> str:
    """Two of the names, the story's own place, thing and animal, and other words."""
    a, b = source.sample(names, 2)
    words = {kind: source.choice(choices.split()) for kind, choices in WORDS.items()}
    return template.format(**words | kept, a=a, b=b)
