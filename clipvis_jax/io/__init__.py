"""Files that are whole or absent, temporary files, locks, reading ahead."""
