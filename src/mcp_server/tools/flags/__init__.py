"""Flag tables: which extra flags a tool takes, and the reader that turns text into typed values and back.

A table maps an exact flag to the type and bounds of its value. `read` accepts only what the table spells out:
no abbreviation, no ``--x=y``, no positional words, nothing twice. The argv is always emitted again from the
typed values (`emit`), so no character typed by a caller is ever part of an argv except through a value type
that has parsed it. Rules for what a table may hold: no flag whose value is a path, a host, a URL, an interface
or an expression, because every denylist of such flags loses against the program's own parser.
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
