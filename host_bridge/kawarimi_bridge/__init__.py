"""The host side: hypervisor drivers, the coordinator and the command line."""
