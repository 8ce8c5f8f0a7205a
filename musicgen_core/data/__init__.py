"""Archives, audio, captions and shards of codes."""
