"""Runs bundles. Nothing here needs TVM's compiler, torch or transformers."""
