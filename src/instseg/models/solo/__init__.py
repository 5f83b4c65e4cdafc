"""SOLO, Decoupled SOLO and SOLOv2."""
