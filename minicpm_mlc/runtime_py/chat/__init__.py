"""From messages to prompts, and from tokens to what a person reads."""
