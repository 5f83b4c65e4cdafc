"""Training: recipes, schedule, the loop, checkpoints that survive a kill, and the watch on what goes wrong."""
