"""Tokens -> US dollars."""
