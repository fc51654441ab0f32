"""From config.json to a model's shape."""
