r"""Finds the final answer in a model's text.

Models end an answer in many ways. From the surest on: ``\boxed{18}`` (as Qwen2.5 and Llama 3 write
when asked to), ``#### 18`` (GSM8K's own form), ``The answer is 18``, and a bare last number.
Numbers are returned as they were written, without currency and thousands separators, and compared
as fractions: 18.00 is 18, and 0.5 is 1/2. A percent sign and units are ignored.

A model may write anything. So every search here takes time linear in the text, or in its last
`MAX_CHARS` characters, where answers are.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHARS = 20_000
"""Length of the end of a text that is searched."""
LETTERS = "ABCDE"
"""Letters of the options of a question."""
_MAX_DIGITS = 1000
"""Longer numbers are compared as they were written."""
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}%])-(?=[$€£¥₹]?\s?[\d.]))?   # in "10-3" it is no sign
    (?:[$€£¥₹]\s?(?P<late_sign>-(?=\d))?)?            # "$-5"
    (?<![\d^])(?<!\^\{)                               # in "m^2" it is no number
    (?:(?P<whole>\d+)\ (?=\d+/[1-9]))?                # "3 1/2"
    (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\w)\.\d+)
    (?P<exponent>[eE][+-]?\d{1,3}(?!\w))?           # "1.5e3"
    (?:/(?P<under>[1-9]\d*)(?![\d/]))?
    """,
    re.VERBOSE,
)
_LATEX = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        ("[\u2212\u2010\u2011]", "-"),
        ("(?<![\\w)\\]}%])\u2013(?=\\d)", "-"),  # in "3\u20135" it is no sign
        (r"\{,\}|(?<=,)\\!", ","),
        (r"(?<=\d)(?:\\[,;:! ]|[\u00a0\u2009\u202f])(?=\d{3})", ""),
        (r"\\([$%])", r"\1"),
        (r"(?<=\d)\s*(?=\\[dtc]?frac)", " "),
        (r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2"),
    )
]
_LEFT_SIDE = re.compile(r"(?:\\(?:times|cdot|div)|[^=A-Za-z\\]|\b(?:[A-Za-z]|of)\b)*=")
_MOST_BOXES = 20
"""Last boxes that are searched for a number."""
_HASHES = re.compile(  # the answer may follow a heading
    r"####(?:[ \t*_]*+(?:(?:the )?(?:final )?answer)?+[ \t*_:]*+\n\s*+)?([^\n]*)", re.IGNORECASE
)
_PHRASE = re.compile(r"\banswer\b[\s*_]*(?:is|are|would be|will be|=|:)[\s*_:]*", re.IGNORECASE)
_ORNAMENTS = " \t*_$\\([{~≈"


def boxed(text: str) -> list[str]:
    r"""Return the contents of each ``\boxed{...}``, in order; one that is cut off is left out."""
    contents: list[str] = []
    open_braces: list[int | None] = []  # where the content of a box begins; None for other braces
    for match in re.finditer(r"\\boxed\s*\{|\\[{}]|[{}]", text):
        if match[0].startswith("\\boxed"):
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces and (start := open_braces.pop()) is not None:
            contents.append(text[start : match.start()].strip())
    return contents


def all_numbers(text: str) -> list[str]:
    """Return the numbers in a text, in order."""
    return list(_numbers(_without_latex(text)))


def last_number(text: str) -> str | None:
    """Return the last number in a text."""
    return next(reversed(all_numbers(text)), None)


def final_number(text: str) -> str | None:
    r"""Return the number that the text gives as its answer.

    In order of preference: the last ``\boxed{}`` with a number, the last ``#### N``, the last
    "answer is N", the last number.
    """
    plain = _without_latex(text)
    for content in boxed(plain)[: -_MOST_BOXES - 1 : -1]:  # nested ones repeat each other
        if (number := _right_side(re.sub(r"^-\s+(?=[$\d.])", "-", content))) is not None:
            return number
    for match in reversed(list(re.finditer(r"####([^\n]*)", plain))):
        rest = match[1].lstrip(_ORNAMENTS)
        is_heading = re.match(r"\d+(?:\)|[.:]\s+\w)", rest)
        if _NUMBER.match(rest) and not is_heading:
            return _right_side(rest)
    for match in reversed(list(_PHRASE.finditer(plain))):
        sentence = re.split(r"\.\s|\n", plain[match.end() : match.end() + 200], maxsplit=1)[0]
        rest = sentence.lstrip(_ORNAMENTS)
        if _NUMBER.match(rest):
            return _right_side(rest)
    return last_number(plain)


def strict_gsm8k(text: str) -> str | None:
    """Return the first ``#### N``, cleaned, as lm-evaluation-harness's ``strict-match`` does."""
    match = re.search(r"#### (-?[0-9.,]+)", text)
    return re.sub(r",|\$|\.$", "", match[1]) if match else None


def same_number(left: str | None, right: str | None) -> bool:
    """Return whether two numbers, as this module returns them, are exactly equal."""
    if left is None or right is None:
        return False
    if max(len(left), len(right)) > _MAX_DIGITS:
        return left == right
    return _value(left) == _value(right)


def gold_number(text: str) -> str | None:
    """Return the number of a gold answer ("1,234", "$5", "18 apples"); None for none or several.

    It is None for a power too: in "2^3" only the 2 would be found.
    """
    if "^" in text:
        return None
    text = _without_latex(text)  # as a model's text is read, with its other signs for minus
    text = re.sub(r"\s*/\s*", "/", text.strip())  # from Python 3.12 on Fraction takes blanks
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        numbers = list(_numbers(text))
        return numbers[0] if len(numbers) == 1 else None
    return text


def choice(text: str) -> str | None:
    r"""Return the letter of the option that the text settles on.

    In order of preference: the last ``\boxed{C}``, the last "answer is C", the last "option C", the
    last "(C)", the last line that is a letter or begins with "C)", "C." or "C:".
    """
    text, small = text[-MAX_CHARS:], LETTERS.lower()
    letter = rf"(?:\(?([{LETTERS}])\b(?!['\u2019])|\(([{small}])\))"
    # Possessive, or the runs of ornaments would share a long one in cubically many ways.
    named = r"[\s:*_]*+(?i:option|choice|the letter)?+[\s*$_]*+(?:\\(?:text|math)\w*\s*\{|\\)?"
    says = r"\b(?i:answer)\b[\s*_]*+(?i:is|:|would be)"
    weak = r"\b(?i:answer|option|choice)\b[\s*_]*+(?i:is|:|would be)?+"
    for content in reversed(boxed(text)):
        if match := re.match(rf"(?:\\(?:text|math)\w*\s*\{{|[\s$*])*{letter}", content):
            return (match[1] or match[2]).upper()
    for pattern in (
        rf"(?m){says}{named}(?:{letter}|([{small}])(?=[ \t.*]*$))",
        rf"{weak}{named}{letter}",
        rf"\(([{LETTERS}])\)()",
        rf"(?m)^[ \t\r*$]*([{LETTERS}])(?:\)|[.:][\s*]|[ \t\r*$.]*$)()",
    ):
        if found := re.findall(pattern, text):
            return "".join(found[-1]).upper()
    return None


def final_answer(text: str) -> str | None:
    r"""Return the answer in words or signs: in ``<answer>``, boxed, after ``####`` or "answer is".

    Without any of these it is the last line.
    """
    text = text[-MAX_CHARS:]
    if marked := _tagged(text) or boxed(text):
        return marked[-1].strip() or None
    if marked := _HASHES.findall(text):
        phrase = _PHRASE.search(marked[-1])
        return marked[-1][phrase.end() if phrase else 0 :].strip() or None
    phrases = list(_PHRASE.finditer(text))
    lines = (text[phrases[-1].end() :] if phrases else text).strip().splitlines()
    lines = [line for line in lines if not line.startswith("```")]
    line = "" if not lines else lines[0] if phrases else lines[-1]
    return line.strip("*_` \t").removesuffix(".") or None


def _tagged(text: str) -> list[str]:
    """Return the contents of the last ``<answer>`` that is closed, if there is one."""
    end = text.rfind("</answer>")
    while end >= 0:
        before = text.rfind("</answer>", 0, end)
        start = text.find("<answer>", max(0, before), end)
        if start >= 0:
            return [text[start + len("<answer>") : end]]
        end = before
    return []


def _without_latex(text: str) -> str:
    text = text[-MAX_CHARS:]
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _numbers(text: str) -> Iterator[str]:
    for match in _NUMBER.finditer(text):
        sign = "-" if match["sign"] or match["late_sign"] else ""
        whole = f"{match['whole']} " if match["whole"] else ""
        under = f"/{match['under']}" if match["under"] else ""
        digits = match["digits"].replace(",", "") + (match["exponent"] or "")
        yield sign + whole + digits + under


def _right_side(text: str) -> str | None:
    """Return the first number after the equations that begin a text: 18 in "9 * 2 = 18 eggs"."""
    while match := _LEFT_SIDE.match(text):
        text = text[match.end() :]
    return next(_numbers(text), None)


def _value(number: str) -> Fraction:
    sign = -1 if number.startswith("-") else 1
    parts = number.lstrip("-").split(" ")
    over, _, under = parts[-1].partition("/")
    return sign * (Fraction(parts[0] if len(parts) > 1 else 0) + Fraction(over) / int(under or 1))
