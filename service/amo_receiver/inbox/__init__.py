"""Durable acceptance: a delivery comes in, is stored and applied, and only then answered."""
