"""The sampler `cost`: hypervolume per second, by a Gaussian process over what ran. Alone here to know Optuna."""
