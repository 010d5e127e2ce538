"""The built-in tools, one file each; the file is the registration."""
