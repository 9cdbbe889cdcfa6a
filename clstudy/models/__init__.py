"""CLIP, its attention, and how its weights are loaded, tuned and mixed."""
