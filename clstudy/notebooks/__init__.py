"""Notebooks as programs: parameters, execution, pages, slides, exercises."""
