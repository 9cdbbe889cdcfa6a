"""Simulated studies whose components of variance are known."""
import numpy as np

B = 300  # replicates


def weights(concepts: int, draws: int = B) -> np.ndarray:
    return np.random.default_rng(0).poisson(1, (draws, concepts)).astype(np.float32)


def simulated(N: int, S: int, C: int, seeds=0.0, concepts=0.0, interaction=0.0, mean=3.0,
              draws=B):
    """N studies with two images of each concept: differences in points, (N, S), and under weights,
    (N, draws, S). The components are standard deviations of the difference in accuracy."""
    rng = np.random.default_rng([S, C, N])
    effect = sum(size * np.sqrt(3) * rng.uniform(-1, 1, (N, *shape)) for size, shape in (
        (seeds, (S, 1)), (concepts, (1, C)), (interaction, (S, C))))
    half = (mean / 100 + effect) / 2
    right = 50 * sum(sign * (rng.random((N, S, C), np.float32) < .6 + sign * half).astype("f4")
                     for sign in (1, -1) for _ in range(2))
    of_concepts = weights(C, draws)
    drawn = right @ of_concepts.T / of_concepts.sum(axis=1)
    return right.mean(axis=2), np.moveaxis(drawn, 1, 2)
