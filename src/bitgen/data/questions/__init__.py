"""Questions about pictures: records, marks and boxes in text, and batches of sequences."""
