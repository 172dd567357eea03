//! Runs inside the VM: exec, files, network, clock, power-off over vsock.
