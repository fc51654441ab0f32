"""What everybody needs, once: errors, files, progress, text."""
