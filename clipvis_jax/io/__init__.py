"""Files that are whole or absent, temporary files, locks, JSON by a schema, printing, reading ahead."""
