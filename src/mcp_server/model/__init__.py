"""The data model: targets, runs, coverage and observations, and the sanitizing of text from targets."""
