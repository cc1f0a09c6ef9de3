"""The testbed with a real device passed through: an outer guest plays the machine that has one."""
