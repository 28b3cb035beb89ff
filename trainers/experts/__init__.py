"""A mixture of experts as the teacher: adapters trained on parts of the rows, a gate over them, and their mixture."""
