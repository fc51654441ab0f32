"""What tells about a bundle, a checkpoint or a machine without changing it."""
