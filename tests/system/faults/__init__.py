"""The laboratory, with every fault that this machine can inject."""
