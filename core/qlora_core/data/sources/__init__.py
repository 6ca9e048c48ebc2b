"""Where rows come from: files, their formats and encodings."""
