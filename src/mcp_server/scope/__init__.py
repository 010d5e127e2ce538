"""What may be touched: the scope policy, target reading and resolution."""
