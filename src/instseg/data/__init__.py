"""Data sets: annotation files, images, built-in sets, augmentation, and a check that names every defect."""
