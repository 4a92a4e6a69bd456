"""What a study would cost, before anything is submitted."""
