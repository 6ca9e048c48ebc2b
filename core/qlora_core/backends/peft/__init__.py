"""The plain backend: transformers and PEFT."""
