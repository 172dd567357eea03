//! Private networks: the routed virtual switch on the kernel's datapath.
