"""Many requests at once on one engine: who runs when, on which pages, in which call."""
