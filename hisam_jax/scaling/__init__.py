"""What a model costs, and what more of it buys."""
