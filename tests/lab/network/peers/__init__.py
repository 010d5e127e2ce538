"""Programs of ours that run as hosts of the lab."""
