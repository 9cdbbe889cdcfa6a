"""Runs on disk, one or thousands."""
