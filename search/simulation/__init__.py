"""A search in virtual time: the same conductor, sampler and scheduler, answered by a table of recorded trainings."""
