"""`hisam compare`: every tokenizer, model and switch on the same data, splits and seeds."""
