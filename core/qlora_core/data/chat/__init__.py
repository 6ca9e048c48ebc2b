"""Messages to tokens: templates, the tokenizer, and which tokens are supervised."""
