"""From a model's name to files on this machine: hubs, what was pulled, and what is kept."""
