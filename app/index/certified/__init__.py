"""The index of the CPU: a compressed scan proposes, exact similarities decide."""
