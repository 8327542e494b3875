"""Compute what requests to models cost, in US dollars."""
