"""Speculative decoding: a drafter guesses a tree of tokens, the model checks it in one pass, and
keeps what it would say.
"""
