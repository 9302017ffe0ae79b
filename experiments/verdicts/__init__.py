"""Does a verdict mean what it says? Guides, good and bad, of posteriors whose truth is known."""
