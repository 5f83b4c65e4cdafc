"""Pictures: masks drawn into images, plots, the report. Depends on `core` and `ops` only."""
