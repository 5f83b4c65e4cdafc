"""One file a format: from the files of a data set to categories and records."""
