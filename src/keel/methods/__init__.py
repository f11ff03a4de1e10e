"""One visible loop for each method. They never import each other."""
