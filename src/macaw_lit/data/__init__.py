"""From raw files to batches: readers, media, preprocessing, collation, and the module that ties them together."""
