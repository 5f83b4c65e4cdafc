"""Image files of any kind as uint8 RGB."""
