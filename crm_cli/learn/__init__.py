"""Procedural products, training and evaluation of the networks."""
