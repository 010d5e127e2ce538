"""What is known: targets, runs and their coverage, assets."""
