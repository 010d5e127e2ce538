"""How a process is run: command lookup, limits, sandbox, admission."""
