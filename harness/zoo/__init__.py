"""Small optimizer classes, right and wrong. One module per optimizer: ``Right...`` first, then what can be wrong with it."""
