"""A model and a data set to a report."""
