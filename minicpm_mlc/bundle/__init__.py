"""What compile and runtime share: the manifest, parameters, kernel cases, and the host."""
