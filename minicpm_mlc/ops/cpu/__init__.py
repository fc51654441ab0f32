"""The operators' TIR for CPUs, and its helpers."""
