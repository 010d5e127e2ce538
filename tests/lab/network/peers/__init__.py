"""Programs of this project that run as hosts of the lab."""
