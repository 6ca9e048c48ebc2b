"""What several tests share: tiny real models, random examples."""
