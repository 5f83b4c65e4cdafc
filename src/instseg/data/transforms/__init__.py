"""What training does to an image and its objects."""
