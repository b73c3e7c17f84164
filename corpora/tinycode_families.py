"""What corpora/tinycode.py puts together: parts, and the families of functions that combine two of them.

In phrases and codes {x} is a part's subject, {y} the other one of a pair; {c} is a number from 3 to 9, {s} and
{t} are two letters.  Numbers below 3 are never drawn, so that a part can be told by its code.
"""

import re
from typing import NamedTuple


class Part(NamedTuple):
    """What fills a place in a family."""

    name: str
    phrase: str
    code: str


class Family(NamedTuple):
    """A sentence and a body with places {a} and {b} for two parts."""

    name: str
    takes: str
    """kind of its arguments: a key of NAMES"""
    kinds: tuple[str, str]
    """of the two parts: keys of PARTS"""
    nested: bool
    """part b has part a for its subject"""
    subjects: tuple[str, str]
    """what the parts are about: a key in the dicts of NAMES, or a name itself"""
    phrase: str
    body: str


PARTS: dict[str, tuple[Part, ...]] = {
    "operation": (
        Part("plus", "{x} plus {c}", "{x} + {c}"),
        Part("minus", "{x} minus {c}", "{x} - {c}"),
        Part("from", "{c} minus {x}", "{c} - {x}"),
        Part("times", "{x} times {c}", "{x} * {c}"),
        Part("over", "{x} integer-divided by {c}", "{x} // {c}"),
        Part("modulo", "{x} modulo {c}", "{x} % {c}"),
        Part("squared", "{x} squared", "{x} ** 2"),
        Part("negated", "{x} negated", "-{x}"),
        Part("absolute", "the absolute value of {x}", "abs({x})"),
        Part("at_least", "{x} but at least {c}", "max({x}, {c})"),
        Part("at_most", "{x} but at most {c}", "min({x}, {c})"),
    ),
    "condition": (
        Part("even", "even", "{x} % 2 == 0"),
        Part("odd", "odd", "{x} % 2 == 1"),
        Part("positive", "positive", "{x} > 0"),
        Part("negative", "negative", "{x} < 0"),
        Part("greater", "greater than {c}", "{x} > {c}"),
        Part("less", "less than {c}", "{x} < {c}"),
        Part("min", "at least {c}", "{x} >= {c}"),
        Part("max", "at most {c}", "{x} <= {c}"),
        Part("multiple", "a multiple of {c}", "{x} % {c} == 0"),
        Part("equal", "equal to {c}", "{x} == {c}"),
        Part("unequal", "not {c}", "{x} != {c}"),
    ),
    "summary": (
        Part("sum", "sum of", "sum({x})"),
        Part("largest", "largest of", "max({x}, default=0)"),
        Part("smallest", "smallest of", "min({x}, default=0)"),
        Part("sorted", "sorted list of", "sorted({x})"),
        Part("reverse", "descending list of", "sorted({x}, reverse=True)"),
        Part("distinct", "set of", "set({x})"),
        Part("any", "whether there is nonzero in", "any({x})"),
        Part("all", "whether there is no zero in", "all({x})"),
    ),
    "stretch": (
        Part("first", "the first {c} of {x}", "{x}[:{c}]"),
        Part("last", "the last {c} of {x}", "{x}[-{c}:]"),
        Part("after", "{x} after the first {c}", "{x}[{c}:]"),
        Part("before", "{x} before the last {c}", "{x}[:-{c}]"),
        Part("every", "every item {c} of {x}", "{x}[::{c}]"),
        Part("backward", "{x} backward", "{x}[::-1]"),
        Part("whole", "all of {x}", "{x}"),
    ),
    "change": (
        Part("upper", "{x} in upper case", "{x}.upper()"),
        Part("capital", "{x} with a capital", "{x}.capitalize()"),
        Part("swap", "{x} with cases swapped", "{x}.swapcase()"),
        Part("backward", "{x} backward", "{x}[::-1]"),
        Part("start", "the first {c} of {x}", "{x}[:{c}]"),
        Part("end", "the last {c} of {x}", "{x}[-{c}:]"),
        Part("rest", "{x} after the first {c}", "{x}[{c}:]"),
        Part("repeat", "{x} times {c}", "{x} * {c}"),
        Part("append", "{x} then '{s}'", "{x} + '{s}'"),
        Part("prepend", "'{s}' then {x}", "'{s}' + {x}"),
        Part("replace", "{x} with '{s}' turned into '{t}'", "{x}.replace('{s}', '{t}')"),
        Part("remove", "{x} without '{s}'", "{x}.replace('{s}', '')"),
        Part("strip", "{x} stripped of '{s}'", "{x}.strip('{s}')"),
    ),
    "test": (
        Part("starts", "starts with '{s}'", "{x}.startswith('{s}')"),
        Part("ends", "ends with '{s}'", "{x}.endswith('{s}')"),
        Part("contains", "contains '{s}'", "'{s}' in {x}"),
        Part("lacks", "lacks '{s}'", "'{s}' not in {x}"),
        Part("longer", "is longer than {c}", "len({x}) > {c}"),
        Part("shorter", "is shorter than {c}", "len({x}) < {c}"),
        Part("length", "has length {c}", "len({x}) == {c}"),
        Part("upper", "is upper case", "{x}.isupper()"),
        Part("digits", "is numeric", "{x}.isdigit()"),
    ),
    "letter": (
        Part("upper", "{x} in upper case", "{x}.upper()"),
        Part("swap", "{x} with case swapped", "{x}.swapcase()"),
        Part("twice", "{x} twice", "{x} * 2"),
        Part("repeat", "{x} times {c}", "{x} * {c}"),
        Part("append", "{x} then '{s}'", "{x} + '{s}'"),
        Part("prepend", "'{s}' then {x}", "'{s}' + {x}"),
    ),
    "letter test": (
        Part("vowel", "a vowel", "{x} in 'aeiou'"),
        Part("digit", "a digit", "{x}.isdigit()"),
        Part("letter", "a letter", "{x}.isalpha()"),
        Part("capital", "a capital", "{x}.isupper()"),
        Part("small", "a small letter", "{x}.islower()"),
        Part("unequal", "not '{s}'", "{x} != '{s}'"),
        Part("before", "before '{s}'", "{x} < '{s}'"),
        Part("after", "after '{s}'", "{x} > '{s}'"),
    ),
    "measure": (
        Part("length", "length of {x}", "len({x})"),
        Part("count", "count of '{s}' in {x}", "{x}.count('{s}')"),
        Part("place", "place of '{s}' in {x}", "{x}.find('{s}')"),
        Part("kinds", "distinct letters of {x}", "len(set({x}))"),
        Part("capitals", "capitals in {x}", "sum(c.isupper() for c in {x})"),
        Part("figures", "digits in {x}", "sum(c.isdigit() for c in {x})"),
    ),
    "joint": (
        Part("sum", "{x} plus {y}", "{x} + {y}"),
        Part("difference", "{x} minus {y}", "{x} - {y}"),
        Part("product", "{x} times {y}", "{x} * {y}"),
        Part("larger", "the larger of {x} and {y}", "max({x}, {y})"),
        Part("smaller", "the smaller of {x} and {y}", "min({x}, {y})"),
        Part("distance", "the distance of {x} and {y}", "abs({x} - {y})"),
    ),
}


NAMES: dict[str, dict[str, str]] = {
    "numbers": {"xs": "xs", "x": "x"},
    "lists": {"xs": "xs", "ys": "ys", "x": "x", "y": "y"},
    "rows": {"xs": "rows", "row": "row", "x": "x"},
    "table": {"xs": "d", "key": "k", "x": "v"},
    "words": {"xs": "words", "x": "w"},
    "text": {"xs": "s", "x": "c"},
    "number": {"x": "x"},
    "pair": {"x": "x", "y": "y"},
}
"""Names by kind of arguments.  The parameters are xs and ys, and where there are none, x and y."""

_TEXT = """
filter_map: numbers, operation + condition
    List of {a} for each {x} in {xs} that is {b}.
    return [{a} for {x} in {xs} if {b}]
filter_sum: numbers, operation + condition
    Sum of {a} for each {x} in {xs} that is {b}.
    return sum({a} for {x} in {xs} if {b})
filter_max: numbers, operation + condition
    Largest of {a} for each {x} in {xs} that is {b}, or 0.
    return max([{a} for {x} in {xs} if {b}], default=0)
filter_min: numbers, operation + condition
    Smallest of {a} for each {x} in {xs} that is {b}, or 0.
    return min([{a} for {x} in {xs} if {b}], default=0)
filter_set: numbers, operation + condition
    Set of {a} for each {x} in {xs} that is {b}.
    return {{{a} for {x} in {xs} if {b}}}
filter_sort: numbers, operation + condition
    Sorted list of {a} for each {x} in {xs} that is {b}.
    return sorted({a} for {x} in {xs} if {b})
filter_dict: numbers, operation + condition
    Dict from {x} to {a} for each {x} in {xs} that is {b}.
    return {{{x}: {a} for {x} in {xs} if {b}}}
replace: numbers, operation + condition
    Replace {x} by {a} in {xs} where {x} is {b}.
    return [{a} if {b} else {x} for {x} in {xs}]
first: numbers, operation + condition
    First {a} for {x} in {xs} that is {b}, or {c}.
    return next(({a} for {x} in {xs} if {b}), {c})
any: numbers, operation > condition
    Whether {a} is {b} for any {x} in {xs}.
    return any({b} for {x} in {xs})
all: numbers, operation > condition
    Whether {a} is {b} for every {x} in {xs}.
    return all({b} for {x} in {xs})
count: numbers, operation > condition
    How many {x} in {xs} have {a} that is {b}.
    return sum({b} for {x} in {xs})
select: numbers, operation > condition
    Each {x} in {xs} for which {a} is {b}.
    return [{x} for {x} in {xs} if {b}]
total: numbers, operation + condition
    Start at {c} and add {a} for each {x} in {xs} that is {b}.
    total = {c}
    for {x} in {xs}:
        if {b}:
            total += {a}
    return total
collect: numbers, operation + condition
    Append {a} for each {x} in {xs} that is {b}.
    out = []
    for {x} in {xs}:
        if {b}:
            out.append({a})
    return out
until: numbers, operation + condition
    List of {a} for {x} in {xs} until one is {b}.
    out = []
    for {x} in {xs}:
        if {b}:
            break
        out.append({a})
    return out
range: number, operation + condition, about i
    List of {a} for each i below {x} that is {b}.
    return [{a} for i in range({x}) if {b}]
range_sum: number, operation + condition, about i
    Sum of {a} for each i below {x} that is {b}.
    return sum({a} for i in range({x}) if {b})
choose: number, operation + condition
    Give {a} if {x} is {b}, else {c}.
    return {a} if {b} else {c}
guard: number, operation + condition
    Give {x} if it is {b}, else {a}.
    if {b}:
        return {x}
    return {a}
tell: number, operation > condition
    Whether {a} is {b}.
    return {b}
flatten: rows, operation + condition
    List of {a} for each {x} in all {xs} that is {b}.
    return [{a} for {row} in {xs} for {x} in {row} if {b}]
rows: rows, operation + condition
    For each {row} in {xs}, list of {a} for each {x} that is {b}.
    return [[{a} for {x} in {row} if {b}] for {row} in {xs}]
table: table, operation + condition
    Dict {xs} with {a} for each {x} that is {b}.
    return {{{key}: {a} for {key}, {x} in {xs}.items() if {b}}}
table_sum: table, operation + condition
    Sum of {a} for each {x} in dict {xs} that is {b}.
    return sum({a} for {x} in {xs}.values() if {b})
table_keys: table, operation > condition
    Each {key} in dict {xs} whose {x} has {a} that is {b}.
    return [{key} for {key}, {x} in {xs}.items() if {b}]
two_steps: number, operation > operation
    Take {a}, then give {b}.
    return {b}
map_twice: numbers, operation > operation
    List of {a}, then {b}, for {x} in {xs}.
    return [{b} for {x} in {xs}]
both: numbers, condition + condition
    Each {x} in {xs} that is {a} and {b}.
    return [{x} for {x} in {xs} if {a} and {b}]
either: numbers, condition + condition
    Each {x} in {xs} that is {a} or {b}.
    return [{x} for {x} in {xs} if {a} or {b}]
stretch_sum: numbers, stretch > summary, about xs
    Return {b} {a}.
    return {b}
stretch_map: numbers, operation + stretch, about x/xs
    List of {a} for {x} in {b}.
    return [{a} for {x} in {b}]
zip: lists, joint > operation
    List of {a}, then {b}, for pairs in {xs} and {ys}.
    return [{b} for {x}, {y} in zip({xs}, {ys})]
zip_sum: lists, joint + condition
    Sum of {a} for pairs in {xs} and {ys} if {x} is {b}.
    return sum({a} for {x}, {y} in zip({xs}, {ys}) if {b})
pair: pair, joint > operation
    Take {a}, then give {b}.
    return {b}
pair_tell: pair, joint > condition
    Whether {a} is {b}.
    return {b}
words: words, change + test
    List of {a} for each {x} in {xs} that {b}.
    return [{a} for {x} in {xs} if {b}]
words_join: words, change + test
    Join {a} for each {x} in {xs} that {b} by '{s}'.
    return '{s}'.join({a} for {x} in {xs} if {b})
words_split: text, change + test, about w
    List of {a} for each w in split {xs} that {b}.
    return [{a} for w in {xs}.split() if {b}]
words_dict: words, measure + test
    Dict from {x} to {a} for each {x} in {xs} that {b}.
    return {{{x}: {a} for {x} in {xs} if {b}}}
words_sum: words, measure + test
    Sum of {a} for each {x} in {xs} that {b}.
    return sum({a} for {x} in {xs} if {b})
words_sort: words, measure + change
    Sort {xs} by {a}, then list {b}.
    return [{b} for {x} in sorted({xs}, key=lambda {x}: {a})]
text: text, change > change, about xs
    Take {a}, then give {b}.
    return {b}
text_tell: text, change + test, about xs
    Give {a} if {xs} {b}, else {xs}.
    return {a} if {b} else {xs}
text_map: text, letter + letter test
    Join {a} for each {x} in {xs} that is {b}.
    return ''.join({a} for {x} in {xs} if {b})
text_swap: text, letter + letter test
    Replace {x} by {a} in {xs} where {x} is {b}.
    return ''.join({a} if {b} else {x} for {x} in {xs})
text_list: text, letter + letter test
    List of {a} for each {x} in {xs} that is {b}.
    return [{a} for {x} in {xs} if {b}]
text_count: text, change + letter test, about xs/c
    Dict of counts for each c in {a} that is {b}.
    out = {{}}
    for c in {a}:
        if {b}:
            out[c] = out.get(c, 0) + 1
    return out
"""
"""Name, kind of arguments, kinds of the parts (`>`: b is about a), subject if not x; the sentence; the body."""


def _families(text: str) -> tuple[Family, ...]:
    return tuple(_family(block.splitlines()) for block in re.split(r"\n(?=\w)", text.strip()))


def _family(lines: list[str]) -> Family:
    name, takes, kinds, *subjects = re.split(": |, about |, ", lines[0])
    first, second = re.split(r" [+>] ", kinds)
    about = "".join(subjects or "x").split("/")
    phrase, *body = (line[4:] for line in lines[1:])
    return Family(name, takes, (first, second), " > " in kinds, (about[0], about[-1]), phrase, "\n".join(body))


FAMILIES: tuple[Family, ...] = _families(_TEXT)
