"""The nouns: specs, records, enums, validation. Imports nothing of ours and does no I/O."""
