"""What the tests share: the oracle, the tolerances, the inputs."""
