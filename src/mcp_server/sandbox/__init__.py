"""Runs programs in a sandbox: finds the binary, starts it confined and limited, reads its output, ends it."""
