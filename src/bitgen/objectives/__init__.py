"""What training minimises: pure functions, and the state that they need."""
