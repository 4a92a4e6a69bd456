"""What the numbers say: gates and headlines. Needs numpy only."""
