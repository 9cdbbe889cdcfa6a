"""Runs → tables of numbers."""
