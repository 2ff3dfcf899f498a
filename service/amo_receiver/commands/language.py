"""The language of the commands that a person without English runs first: Russian where the locale says so, else English.

The code writes English sentences; what prints them sends each through ``speaking``. Sentences of other modules and of pydantic come
put together already, so a sentence is found by its shape, and not by where it was written.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from amo_receiver.commands.russian import SENTENCES, WORDS
from amo_receiver.errors import CommandError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Speak: TypeAlias = Callable[[str], str]

LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""The first that is set decides, as everywhere in POSIX."""
FIELD = re.compile(r"\{(\w+)\}")
SHAPES = {
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d",
    "number": r"\d+",
    "setting": r"[A-Z_]+",
    "key": r"\w+ [0-9a-f]{12} \(\w+\)",
}
"""Of fields that would otherwise reach into the neighbouring sentence of a list; the others may hold anything."""


def speaking(environment: Mapping[str, str]) -> Speak:
    """Return what turns an English sentence into one of the user's language."""
    locale = next(filter(None, map(environment.get, LOCALE_VARIABLES)), "")
    return in_russian if re.split("[_.@]", locale)[0].lower() == "ru" else str


@contextmanager
def errors_spoken(speak: Speak) -> Iterator[None]:
    """Have the sentence of an error that ends the command in the user's language."""
    try:
        yield
    except (CommandError, ConfigurationError) as error:
        raise type(error)(speak(str(error))) from error


def in_russian(text: str) -> str:
    """Return a word or sentence in Russian; what none of ours has written is returned as it is."""
    return WORDS.get(text) or _translated(text) or text


def _translated(text: str) -> str | None:
    if text in SENTENCES:
        return SENTENCES[text]
    for pattern, russian in _patterns():
        if found := pattern.fullmatch(text):
            values = {name: _translated(value) or value for name, value in found.groupdict().items()}
            return FIELD.sub(lambda field, values=values: values[field[1]], russian)  # type: ignore[misc]
    if text.endswith("."):
        sentence = _translated(text[:-1])
        return sentence and f"{sentence}."
    return _list_translated(text)


def _list_translated(text: str) -> str | None:
    """Translate several sentences that were joined; None unless each is ours."""
    for separator in ("; ", ", "):
        parts = [_translated(part) for part in text.split(separator)] if separator in text else []
        if parts and all(parts):
            return separator.join(filter(None, parts))
    return None


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(english), russian) for english, russian in SENTENCES.items() if FIELD.search(english)]


def _pattern(english: str) -> re.Pattern[str]:
    """Return the expression that a sentence put together from this template matches."""
    literals_and_names = FIELD.split(english)
    parts = [
        re.escape(part) if number % 2 == 0 else f"(?P<{part}>{SHAPES.get(part, '.*?')})" for number, part in enumerate(literals_and_names)
    ]
    return re.compile("".join(parts), re.DOTALL)
