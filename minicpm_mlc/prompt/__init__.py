"""From messages to token ids, and how a token is drawn: what compile checks and the engine uses."""
