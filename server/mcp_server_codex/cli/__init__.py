"""What a human runs; each module is imported only when it is asked for."""
