"""How questions about scenes are said: the wordings of each kind."""

from __future__ import annotations

SIDES = {
    "left": ("left of {a}", "to the left of {a}"),
    "right": ("right of {a}", "to the right of {a}"),
    "above": ("above {a}", "higher than {a}"),
    "below": ("below {a}", "lower than {a}"),
}
NEXT = {
    "left": ("the thing just left of {a}", "the next thing left of {a}"),
    "right": ("the thing just right of {a}", "the next thing right of {a}"),
    "above": ("the thing just above {a}", "the next thing above {a}"),
    "below": ("the thing just below {a}", "the next thing below {a}"),
}
QUERY = {
    "colour": ("what colour is {a}?", "what is the colour of {a}?", "{a} is of what colour?"),
    "shape": ("what shape is {a}?", "what is the shape of {a}?", "{a} has what shape?"),
    "size": ("what size is {a}?", "how big is {a}?", "is {a} small or large?"),
}
COUNT = ("how many {s} are there?", "what number of {s} is there?", "count the {s}")
EXIST = ("is there a {t}?", "do you see a {t}?", "does the picture have a {t}?")
COMPARE = {
    "colour": ("are {a} and {b} of the same colour?", "does {a} have the colour of {b}?"),
    "shape": ("do {a} and {b} have the same shape?", "does {a} have the shape of {b}?"),
    "size": ("are {a} and {b} of the same size?", "is {a} as big as {b}?"),
}
NUMBERS = {
    "more": ("are there more {a} than {b}?", "is the number of {a} greater than that of {b}?"),
    "fewer": ("are there fewer {a} than {b}?", "is the number of {a} less than that of {b}?"),
    "equal": ("are there as many {a} as {b}?", "is the number of {a} that of {b}?"),
}
