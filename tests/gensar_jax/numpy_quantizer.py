"""The quantiser of Eq. 3-6 and 9 once more, in NumPy, one item and one code at a time."""

import numpy as np


def nearest(residual, codebook):
    """Index of the row of `codebook` with the smallest squared distance to a vector."""
    best, best_distance = 0, np.inf
    for code, embedding in enumerate(codebook):
        distance = sum((a - b) ** 2 for a, b in zip(residual, embedding))
        if distance < best_distance:
            best, best_distance = code, distance
    return best


def quantize_item(latents, codebooks, sources):
    """(identifier by source, z_hat, Eq. 9's terms [(r, e)] of all levels) of one item."""
    residual = np.array(latents, np.float64)
    found = np.zeros_like(residual)
    shared, terms = [], []
    for codebook in codebooks["shared"]:
        code = nearest(residual, codebook)
        shared.append(code)
        terms.append((residual.copy(), codebook[code].astype(np.float64)))
        residual = residual - codebook[code]
        found = found + codebook[code]
    width = len(residual) // len(sources)
    identifiers = {}
    for number, source in enumerate(sources):
        part = slice(number * width, (number + 1) * width)
        rest, codes = residual[part].copy(), []
        for codebook in codebooks[source]:
            code = nearest(rest, codebook)
            codes.append(code)
            terms.append((rest.copy(), codebook[code].astype(np.float64)))
            rest = rest - codebook[code]
            found[part] += codebook[code]
        identifiers[source] = shared + codes
    return identifiers, found, terms


def sinkhorn_plan(distances, epsilon, iterations):
    """The transport plan in float64, straight from its definition: rows and columns in turn."""
    lowest, highest = distances.min(), distances.max()
    scaled = (distances - (lowest + highest) / 2) / ((highest - lowest) / 2 + 1e-5)
    plan = np.exp(-scaled.astype(np.float64) / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True) / plan.shape[0]
        plan = plan / plan.sum(0, keepdims=True) / plan.shape[1]
    return plan
