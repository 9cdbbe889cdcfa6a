"""Benchmarks by name. A benchmark is a function `(**options) -> Benchmark`; add yours to the dict."""
from . import emoji

BENCHMARKS = {"emoji": emoji.emoji, "emoji_concepts": emoji.emoji_concepts}
