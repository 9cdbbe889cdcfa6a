"""What all benchmarks have in common."""
from dataclasses import dataclass
from typing import ClassVar

from clstudy.data.types import BenchmarkData
from clstudy.utils.options import Options


@dataclass
class Benchmark(Options):
    """Training and test images of the same classes, and held-out sets that no stream touches."""

    prompt: ClassVar[str] = ""  # `{}` stands for the class name

    def require(self) -> None:
        """Refuse missing data before anything is decoded; an object can be made without its data.

        FileNotFoundError: what is missing, and how to get it. ValueError: data of another form."""

    def load(self) -> BenchmarkData:
        """Return the decoded images. Errors as in `require`; DamagedError: names the file."""
        raise NotImplementedError

    def fingerprint(self) -> list[str]:
        """Return digests of what images and prompts depend on besides the options, for run_id."""
        return []
