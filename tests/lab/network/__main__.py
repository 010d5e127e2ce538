"""Entry point of ``python -m tests.lab.network``."""

import sys

from tests.lab.network.cli import main

sys.exit(main())
