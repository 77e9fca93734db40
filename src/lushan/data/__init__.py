"""Files to checked, split, packed examples: readers, splits, checks, the token ledger, batching. No models here."""
