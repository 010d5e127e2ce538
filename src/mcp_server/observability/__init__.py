"""Logs, traces and events."""
