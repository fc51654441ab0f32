"""`python -m minicpm_mlc` is `minicpm-mlc`."""

from minicpm_mlc.cli import main

main()
