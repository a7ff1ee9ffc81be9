"""What released software is known to do wrong: the ledger, the life of each entry (``*.json``), and (``evidence``) under which versions of torch it was seen."""
