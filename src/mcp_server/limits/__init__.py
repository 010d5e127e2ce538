"""Limits on calls: admission, rate limits and circuit breakers."""
