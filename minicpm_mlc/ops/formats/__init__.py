"""How weights, keys and values, and token trees are stored."""
