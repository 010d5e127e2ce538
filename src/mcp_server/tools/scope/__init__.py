"""The parts of the tool `scope`."""
