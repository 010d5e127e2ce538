"""Flag tables: which extra flags a tool allows, and the reader that turns their text into typed values.

A table maps each exact flag to the type and bounds of its value. `read` accepts only what the table lists: no
abbreviation, no ``--x=y``, no positional words, and no flag twice. `emit` writes the argv from the typed values, so no
text of a caller reaches an argv unless a value type has parsed it. A table must not hold a flag whose value is a path,
a host, a URL, an interface or an expression, because for a program's own parser no list of forbidden values is
complete.
"""

from mcp_server.tools.flags.reader import check_characters, read
from mcp_server.tools.flags.table import Flag, Setting, emit, table
from mcp_server.tools.flags.values import ChoiceValue, DurationValue, FloatValue, IntValue, Value, WordValue

__all__ = [
    "ChoiceValue",
    "DurationValue",
    "Flag",
    "FloatValue",
    "IntValue",
    "Setting",
    "Value",
    "WordValue",
    "check_characters",
    "emit",
    "read",
    "table",
]
