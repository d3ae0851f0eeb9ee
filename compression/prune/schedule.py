"""How sparse a model is after each stage of gradual pruning."""


def cubic(stage: int, stages: int, final: float, initial: float = 0.0) -> float:
    """Return the sparsity after a stage (1 … stages): fast at first, slow at the end.

    s = final + (initial - final) · (1 - stage / stages)³ (Zhu and Gupta 2017, equation 1): early
    on, many weights are redundant; at the end each one costs.
    """
    return final + (initial - final) * (1 - stage / stages) ** 3
