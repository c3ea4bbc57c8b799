"""Match the regular expressions of adapters, which come with a file, within a limit of time.

Python's own engine backtracks without a limit: ``(a+)+$`` on thirty characters takes minutes.
"""

from __future__ import annotations

import time

import regex

from merganser.errors import InputError

LONGEST = 10_000
"""Characters of a pattern."""

SECONDS = 2.0
"""For all matches of one adapter."""


class ModulePatterns:
    """Patterns of module names, as PEFT matches the keys of its ``alpha_pattern``: the end of a name, from a dot on.

    Args:
        key: of the adapter's configuration, for messages.
        where: its file, likewise.
        patterns: in the order in which they are tried.
        seconds: for all matches together.

    Raises:
        InputError: a pattern is not a regular expression, or too long; names it.
    """

    def __init__(self, key: str, where: object, patterns: list[str], seconds: float = SECONDS) -> None:
        self._key, self._where, self._left = key, where, seconds
        self._compiled = {pattern: self._compile(pattern) for pattern in patterns}

    def _compile(self, pattern: str) -> regex.Pattern[str]:
        if len(pattern) > LONGEST:
            raise InputError(
                f"{self._where}: a pattern of {self._key} has {len(pattern)} characters, more than {LONGEST}.",
                "Name the modules in fewer characters.",
            )
        try:
            return regex.compile(rf"(.*\.)?({pattern})$")
        except (regex.error, RecursionError) as error:
            raise InputError(
                f"{self._where}: the pattern {pattern!r:.200} of {self._key} is not a regular expression: {error}.",
                "Correct it.",
            ) from error

    def first_match(self, module: str) -> str | None:
        """Return the first pattern that matches a module's name, or ``None``.

        Raises:
            InputError: matching took too long; names the pattern.
        """
        for pattern, compiled in self._compiled.items():
            started = time.monotonic()
            try:
                if self._left <= 0:
                    raise TimeoutError
                matched = compiled.match(module, timeout=self._left)
            except TimeoutError as error:
                raise InputError(
                    f"{self._where}: the pattern {pattern!r:.200} of {self._key} takes too long to match.",
                    "Write it without nested repetitions such as (a+)+, or name the modules.",
                ) from error
            self._left -= time.monotonic() - started
            if matched:
                return pattern
        return None
