"""The certified index of the CPU: a compressed scan proposes candidates, exact similarities
decide."""
