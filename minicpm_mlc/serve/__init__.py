"""A bundle over HTTP, in the protocols that programs speak already."""
