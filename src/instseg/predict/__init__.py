"""Any number of images to files that survive a stop."""
