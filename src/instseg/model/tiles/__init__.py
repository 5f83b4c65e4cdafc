"""Large images in squares, and one result from theirs."""
