"""What leaves the program for one image, and the files it goes into."""
