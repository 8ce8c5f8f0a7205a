"""What `musicgen-flows doctor` looks at, a subject a file; each check gives findings and changes nothing."""
