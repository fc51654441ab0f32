"""One file per model and per kind of draft head, and what they share; registry.py finds them."""
