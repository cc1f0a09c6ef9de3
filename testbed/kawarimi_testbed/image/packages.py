"""What is installed in the guest image."""

PACKAGES = [
    # The programs that kawarimi is for, and the verbs beneath them.
    *("openmpi-bin", "rdma-core", "ibverbs-providers", "ibverbs-utils", "perftest"),
    # Programs that nobody here wrote: the tests run them while their guests move.
    *("hpcc", "netpipe-openmpi", "python3-mpi4py"),
    # What the guest agent runs on.
    *("python3", "python3-pyverbs", "python3-zmq", "python3-psutil", "python3-cffi"),
    # A guest that one can work in.
    *("kmod", "iproute2", "ethtool", "busybox-static", "openssh-server", "openssh-client"),
]
