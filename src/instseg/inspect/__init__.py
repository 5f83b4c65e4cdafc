"""What a data set holds: defects, statistics, pictures."""
