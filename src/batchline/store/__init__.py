"""What must survive a crash: rows, blobs, and the questions that may be asked of them."""
