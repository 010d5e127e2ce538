"""The built-in tools, one file each. A tool is registered by its file: ``NAME_tool.py``."""
