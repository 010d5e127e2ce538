"""The attack corpus: calls that try to leave the scope, access a file or run a program, and how each must end."""

from __future__ import annotations

from tests.containment.corpus.addresses import ADDRESSES
from tests.containment.corpus.attack import Attack
from tests.containment.corpus.flags import FLAGS
from tests.containment.corpus.names import NAMES
from tests.containment.corpus.parameters import PARAMETERS
from tests.containment.corpus.scripts import SCRIPTS

CORPUS: tuple[Attack, ...] = (*ADDRESSES, *FLAGS, *SCRIPTS, *NAMES, *PARAMETERS)
