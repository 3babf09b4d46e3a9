"""The leader's decisions. Every module but loop.py is pure: a view and the time in, writes and reasons out."""
