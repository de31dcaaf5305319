"""Faults dealt to real runs, one module a kind; `hammer.py` deals many, `test_hammer.py` a few of each."""
