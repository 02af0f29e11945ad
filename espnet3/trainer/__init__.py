"""Training: ESPnet's model contract on Lightning, with a state that no interruption loses."""
