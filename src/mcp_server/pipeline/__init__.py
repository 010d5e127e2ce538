"""The pipeline of every request, with one module for each step. A step takes and returns a typed value."""
