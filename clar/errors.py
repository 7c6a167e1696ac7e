"""What goes wrong through the user's input, said in one line: what, where, the value, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in a command, a field or the data. Commands print it as one line and exit with code 2."""


def near(value: object, known: Iterable[str]) -> str:
    """`; did you mean a or b?` where `known` holds names like `value`, else `; known: a, b, c`."""
    names = [str(name) for name in known]
    matches = get_close_matches(str(value).lower(), names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else f"; known: {', '.join(names)}"
