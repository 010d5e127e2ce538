"""What may be scanned: parsing and resolving targets, and the scope policy."""
