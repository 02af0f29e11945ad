"""A seeded grammar of spoken commands: letters, numbers, dates, times, names, short phrases; about 200 words.

No two words of it sound alike ("two" but never "to" or "too", "four" but never "for"), so that every error is audible.
"""

# word lists read better than lists of strings
# ruff: noqa: SIM905

from __future__ import annotations

import random
from collections.abc import Callable

UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth".split()
MONTHS = "january february march april may june july august september october november december".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
# without a (also an article), u (you) and z (zee or zed)
LETTERS = "b c d e f g h i j k l m n o p q r s t v w x y".split()
NAMES = "alice peter maria david sarah thomas emma robert julia oscar".split()
CITIES = "london paris berlin madrid tokyo boston".split()
ROOMS = "kitchen bathroom garage garden office hallway".split()
DEVICES = "light fan heater radio camera".split()
COLOURS = "red green blue yellow purple black".split()
OBJECTS = "umbrella jacket bottle table pencil".split()
EVENTS = "meeting dinner breakfast concert".split()
DIRECTIONS = "north south east west".split()


def _below_hundred(rng: random.Random, low: int = 0) -> str:
    # as many below twenty as above: otherwise each of the teens is too rare to be learnt
    number = rng.randint(low, 19) if rng.random() < 0.5 else rng.randint(20, 99)
    if number < 20:
        return (UNITS + TEENS)[number]
    return TENS[number // 10 - 2] + (f" {UNITS[number % 10]}" if number % 10 else "")


def _number(rng: random.Random) -> str:
    words = [f"{rng.choice(UNITS[1:])} thousand"] if rng.random() < 0.4 else []
    words += [f"{rng.choice(UNITS[1:])} hundred"] if rng.random() < 0.7 or not words else []
    return " ".join([*words, _below_hundred(rng, 1)])


def _time(rng: random.Random) -> str:
    hour = rng.choice((UNITS + TEENS)[1:13])
    return f"{hour} {rng.choice(['fifteen', 'thirty', 'forty five', *TENS[:4]])}" + rng.choice(["", " in the evening"])


def _date(rng: random.Random) -> str:
    return f"{rng.choice(MONTHS)} {rng.choice([*ORDINALS, 'twentieth', 'thirtieth'])}"


def _digits(rng: random.Random) -> str:
    return " ".join(rng.choice(UNITS) for _ in range(rng.randint(4, 7)))


def _spell(rng: random.Random) -> str:
    return "spell " + " ".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5)))


def _filled(*patterns: str) -> Callable[[random.Random], str]:
    def sentence(rng: random.Random) -> str:
        fields = {
            "switch": rng.choice(["turn on", "turn off", "switch on", "switch off"]),
            "room": rng.choice(ROOMS),
            "device": rng.choice(DEVICES),
            "level": rng.choice(["degrees", "percent"]),
            "span": rng.choice(["seconds", "minutes", "hours", "days", "weeks"]),
            "person": rng.choice(NAMES),
            "other": rng.choice(NAMES),
            "weekday": rng.choice(WEEKDAYS),
            "city": rng.choice(CITIES),
            "colour": rng.choice(COLOURS),
            "thing": rng.choice(OBJECTS),
            "event": rng.choice(EVENTS),
            "direction": rng.choice(DIRECTIONS),
            "side": rng.choice(["left", "right", "back"]),
            "genre": rng.choice(["jazz", "piano", "guitar"]),
            "length": rng.choice(["miles", "meters", "steps"]),
            "sign": rng.choice(["plus", "minus", "times", "divided by"]),
            "greeting": rng.choice(["good morning", "good night", "thank you", "hello", "happy birthday"]),
            "answer": rng.choice(["yes please", "not today", "maybe tomorrow", "never mind"]),
            "control": rng.choice(["stop", "repeat", "delete", "save", "open"]),
            "item": rng.choice(["message", "timer", "song", "alarm", "picture"]),
            "which": rng.choice(["last", "next", *ORDINALS[:6]]),
            "small": _below_hundred(rng, 2),
            "large": _number(rng),
            "time": _time(rng),
            "date": _date(rng),
            "digits": _digits(rng),
        }
        return rng.choice(patterns).format(**fields)

    return sentence


TEMPLATES: list[tuple[int, Callable[[random.Random], str]]] = [
    (4, _filled("{switch} the {room} {device}", "please {switch} the {device} in the {room}")),
    (3, _filled("set the {room} {device} at {small} {level}", "volume {small} percent in the {room}")),
    (3, _filled("start timer {small} {span}", "remind {person} in {small} {span}")),
    (4, _filled("wake me on {weekday} at {time}", "alarm on {date} at {time}")),
    (
        4,
        _filled(
            "book {event} with {person} on {weekday} {date}", "move the {event} in {city} from {weekday} at {time}"
        ),
    ),
    (3, _filled("call {person} at {digits}", "dial {digits}")),
    (3, _filled("send {person} the message {greeting} {other}", "tell {person} {answer}")),
    (4, _filled("{greeting} {person} and {other}", "{answer} {person}", "{greeting} {person} {answer}")),
    (3, _spell),
    (
        4,
        _filled(
            "{large}", "{large} {sign} {small}", "what is {small} {sign} {small}", "what is {large} {sign} {small}"
        ),
    ),
    (4, _filled("play {genre} music in the {room} at {small} percent", "play {person} the {which} {genre} song")),
    (4, _filled("go {direction} {small} {length} then turn {side}", "turn {side} after {small} {length}")),
    (4, _filled("find my {colour} {thing} in the {room}", "paint the {which} {thing} {colour}")),
    (3, _filled("show the weather in {city} on {weekday}", "show flights from {city} on {date}")),
    (3, _filled("{control} the {which} {item}", "{control} the {item} from {person}", "{control} {item} {small}")),
]
_WEIGHTS = [weight for weight, _ in TEMPLATES]


def sentence(rng: random.Random) -> str:
    """One command in lower-case words, drawn from the grammar with *rng*."""
    (_, template), *_ = rng.choices(TEMPLATES, weights=_WEIGHTS)
    return template(rng)
