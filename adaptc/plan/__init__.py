"""The planner: form of each part, order of each contraction, and what is kept for backward."""
