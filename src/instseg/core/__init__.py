"""The project's words: instances, masks, run-length codes, categories, errors. Nothing here knows a network."""
