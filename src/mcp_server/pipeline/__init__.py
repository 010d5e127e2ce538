"""The steps that every request takes, one module each. A step takes a typed value and returns a typed value."""
