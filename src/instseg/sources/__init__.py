"""What users name as images, read ahead."""
