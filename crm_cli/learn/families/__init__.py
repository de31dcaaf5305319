"""Families of products: each function draws the proportions and colours of one kind of thing.

Walls are 0.06 or thicker, about four pixels of a 128 px view, so that depth maps can resolve them.
"""
