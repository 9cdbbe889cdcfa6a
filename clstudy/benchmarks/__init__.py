"""Benchmarks by name. A benchmark is a function `(**options) -> Benchmark`; add yours to the dict."""
from .emoji import emoji, emoji_concepts

BENCHMARKS = {"emoji": emoji, "emoji_concepts": emoji_concepts}
