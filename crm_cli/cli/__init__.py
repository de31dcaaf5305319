"""The command line, a file a command; `app.py` puts them together."""
