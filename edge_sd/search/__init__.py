"""Finding plans: the best decisions at a budget of steps, tuned timesteps, a width for each step."""
