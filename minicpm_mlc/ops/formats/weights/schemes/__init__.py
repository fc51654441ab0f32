"""One file per weight scheme: `SCHEME`, of the file's name."""
