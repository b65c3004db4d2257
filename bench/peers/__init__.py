"""Peers: one module for each other way to run a line of Python, all started in turn."""
