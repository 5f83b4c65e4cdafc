"""A network with everything around it: images in, objects out."""
