"""The checks of `musicgen-flows doctor`, one subject per file. Each returns findings and changes nothing."""
