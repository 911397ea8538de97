"""The embedded demo world: media and texts whose every fact is known, written in the datasets' own formats."""
