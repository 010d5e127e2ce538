"""Benchmarks of speed, memory and token cost, each compared with a floor that is measured in the same run."""
