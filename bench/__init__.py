"""Benchmarks: speed, memory and token cost, each against a floor that is measured in the same run."""
