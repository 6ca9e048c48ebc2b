"""What is known of this machine from earlier: measurements, self-test results, compiled modules."""
